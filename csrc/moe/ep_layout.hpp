// The bytes that an ExpertParallel shares: its region in every rank's data memory, and the payload of its records.
// The planner adds up the same numbers that the object allocates, so they cannot disagree.
//
//   input     2 slots of max_tokens rows      written by the user (input_buffer), pulled by dispatch
//   staging   2 slots of max_tokens rows      dispatch's copy of an x that lies in private memory, or is quantised
//   route     2 slots, one route list per destination rank: a RoutedRow for each of its rows
//   bases     2 slots of uint32 (ranks, expert slots here): first row of each source and expert, for combine
//   results   per result: rows of x, then rows of out, each (ranks * max_tokens * (topk + shared experts)) rows at the
//             worst; in layout "token" x has (ranks * max_tokens); if combine quantises, then the quantised rows of out
//
// staging, x and the quantised rows of out are in the format of row_format.hpp, input and out as the user has them.
// Everything is written by the owner and pulled by the others. Slots of 2 are used in turn (record_depth).
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#include "base/error.hpp"
#include "memory/mapping.hpp"
#include "memory/range_allocator.hpp"
#include "moe/placement.hpp"
#include "moe/row_format.hpp"
#include "sync/record_layout.hpp"

namespace xccl {

// What the rows of a result are.
enum class RowLayout : uint32_t {
  expert = 1,  // one row per (token, expert), expert by expert
  token = 2,   // one row per token, and which of them each expert wants
};

constexpr const char* row_layout_name(RowLayout layout) {
  return layout == RowLayout::expert ? "expert" : layout == RowLayout::token ? "token" : "unknown";
}

struct EpShape {
  int64_t num_experts = 0, hidden = 0, max_tokens = 0, topk = 0;
  RowType dtype = RowType::float32;
  RowLayout layout = RowLayout::expert;
  int64_t results = 2;  // results alive at once
  Quant dispatch_quant = Quant::none, combine_quant = Quant::none;
  std::vector<int32_t> shared_experts;  // get every token, besides those that it names
  // So many members, the first ones, have tokens and no experts, and the others experts and no tokens: records go only
  // between the two. 0: all have both.
  int64_t token_ranks = 0;

  // Experts of a token, at the most.
  int64_t slots() const { return topk + static_cast<int64_t>(shared_experts.size()); }
  // Of a row as the user gives it to dispatch and combine.
  uint64_t row_bytes() const { return static_cast<uint64_t>(hidden) * element_bytes(dtype); }
  // What dispatch moves, and x of a result is; what combine moves.
  RowFormat dispatch_format() const { return {dtype, dispatch_quant, static_cast<uint64_t>(hidden)}; }
  RowFormat combine_format() const { return {dtype, combine_quant, static_cast<uint64_t>(hidden)}; }
};

// InvalidArgument, naming the argument, for a shape that cannot be.
inline void check(const EpShape& shape, int ranks) {
  const auto require = [](const char* name, int64_t value, int64_t lowest, int64_t highest) {
    if (value < lowest || value > highest)
      fail(Status::InvalidArgument, name, "=", value, ": expected ", lowest, " to ", highest);
  };
  require("num_experts", shape.num_experts, 1, 1 << 20);
  require("hidden", shape.hidden, 1, 1 << 24);
  require("max_tokens", shape.max_tokens, 1, 1 << 24);
  require("topk", shape.topk, 1, 1024);
  require("topk + shared experts", shape.slots(), 1, 1024);
  for (size_t i = 0; i < shape.shared_experts.size(); ++i) {
    require("shared_experts: expert", shape.shared_experts[i], 0, shape.num_experts - 1);
    if (std::count(shape.shared_experts.begin(), shape.shared_experts.end(), shape.shared_experts[i]) > 1)
      fail(Status::InvalidArgument, "shared_experts names expert ", shape.shared_experts[i], " twice");
  }
  require("results", shape.results, 1, 1024);
  if (!is_row_type(shape.dtype))
    fail(Status::InvalidArgument, "dtype ", element_type_name(shape.dtype),
         ": expected float32, float16 or bfloat16");
  if (shape.layout != RowLayout::expert && shape.layout != RowLayout::token)
    fail(Status::InvalidArgument, "layout is ", static_cast<uint32_t>(shape.layout),
         ": expected 1 (expert) or 2 (token)");
  require("token_ranks", shape.token_ranks, 0, ranks - 1);
  const auto require_quant = [](const char* name, Quant quant) {
    if (quant != Quant::none && quant != Quant::int8 && quant != Quant::fp8_e4m3)
      fail(Status::InvalidArgument, name, " is ", static_cast<uint32_t>(quant),
           ": expected 0 (none), 1 (int8) or 2 (fp8_e4m3)");
  };
  require_quant("dispatch_quant", shape.dispatch_quant);
  require_quant("combine_quant", shape.combine_quant);
  const int64_t worst = shape.max_tokens * shape.slots() * ranks;
  if (worst > INT32_MAX)
    fail(Status::InvalidArgument, "max_tokens * topk * ranks is ", worst, ", more rows than ", INT32_MAX,
         "; use a smaller max_tokens and several calls");
  // The sizes below must not overflow; 2^56 bytes are more than any address space.
  const auto bytes = static_cast<long double>(worst) * static_cast<long double>(shape.row_bytes()) *
                     static_cast<long double>(2 * shape.results);
  if (bytes > 0x1p56L)
    fail(Status::InvalidArgument, "max_tokens * topk * ranks * hidden * results is beyond any address space");
}

// The placement where none is given. InvalidArgument as of check().
inline Placement even_placement(const EpShape& shape, int ranks) {
  check(shape, ranks);
  const auto experts = static_cast<int>(shape.num_experts);
  if (shape.token_ranks == 0) return Placement(experts, ranks);
  const auto first = static_cast<size_t>(shape.token_ranks);
  const Placement among_the_others(experts, ranks - static_cast<int>(first));
  std::vector<int32_t> slots(first, 0), held(static_cast<size_t>(experts));
  for (int rank = 0; rank < among_the_others.ranks(); ++rank) slots.push_back(among_the_others.count(rank));
  std::iota(held.begin(), held.end(), 0);
  return Placement(experts, slots, std::move(held));
}

// One row for another rank, in that rank's route list. A list is in the order (token, slot).
struct RoutedRow {
  int32_t token;
  uint32_t expert;  // counted on its rank
  float weight;
};
static_assert(sizeof(RoutedRow) == 12 && std::is_trivially_copyable_v<RoutedRow>);

struct EpPiece {
  uint64_t offset = 0, bytes = 0;
};

struct EpLayout {
  EpPiece input[record_depth], staging[record_depth], route[record_depth], bases[record_depth];
  std::vector<EpPiece> x, out, quantised;  // per result; the last only if combine quantises
  uint64_t bytes = 0;                      // of the whole region

  // The most rows a rank can be given. Experts may repeat within a token, so topk bounds the copies of a token.
  static uint64_t worst_rows(const EpShape& shape, const Placement& placement, int rank) {
    const int64_t sources = shape.token_ranks ? shape.token_ranks : placement.ranks();
    return placement.count(rank) == 0 ? 0 : static_cast<uint64_t>(sources * shape.max_tokens * shape.slots());
  }

  EpLayout(const EpShape& shape, const Placement& placement, int rank) {
    const auto tokens = static_cast<uint64_t>(shape.max_tokens);
    const auto slots = static_cast<uint64_t>(shape.max_tokens * shape.slots());
    for (auto& piece : input) piece = take(tokens * shape.row_bytes());
    for (auto& piece : staging) piece = take(shape.dispatch_format().bytes(tokens));
    const auto ranks = static_cast<uint64_t>(placement.ranks());
    for (auto& piece : route) piece = take(slots * sizeof(RoutedRow));
    for (auto& piece : bases) piece = take(4 * ranks * static_cast<uint64_t>(placement.count(rank)));
    const uint64_t worst = worst_rows(shape, placement, rank),
                   copies = shape.layout == RowLayout::token ? static_cast<uint64_t>(shape.slots()) : 1;
    for (int64_t i = 0; i < shape.results; ++i) {
      x.push_back(take(shape.dispatch_format().bytes(worst / copies)));
      out.push_back(take(worst * shape.row_bytes()));
      if (shape.combine_format().quantised()) quantised.push_back(take(shape.combine_format().bytes(worst)));
    }
  }

 private:
  EpPiece take(uint64_t size) {
    // Pieces that can hold huge pages begin where one may begin.
    const uint64_t offset = round_up(bytes, size >= huge_page ? huge_page : page_granule);
    bytes = offset + round_up(size, page_granule);
    return {offset, size};
  }
};

// Words of an ExpertParallel's records. Offsets are in the writer's region.
namespace ep_record {
enum Kind : uint64_t { dispatch = 1, dispatch_again = 2, combine = 3, set_placement = 4 };
enum Word : size_t {
  kind,  // Kind
  routing,  // dispatch: id of the routing in use; combine: number of the dispatch whose result it is; set_placement:
            // digest of the placement
  rows,      // dispatch: rows for the reader; combine: rows at `where`
  tokens,    // dispatch: rows at `where`, and the tag in the upper half: see counted()
  where,     // offset of the rows to pull
  list,      // dispatch: offset of the reader's route list; combine: of the reader's row bases
  finished,  // the writer has pulled everything up to this call
};
}  // namespace ep_record
static_assert(ep_record::finished < std::tuple_size_v<Payload>);

// What a dispatch is for, a layer say, told by those that have tokens to those that may not know.
constexpr int64_t no_tag = -1, highest_tag = (int64_t{1} << 31) - 1;

namespace ep_record {
constexpr uint64_t with_tag(uint64_t count, int64_t tag) {
  return count | static_cast<uint64_t>(tag + 1) << 32;
}
constexpr uint64_t counted(uint64_t word) { return word & UINT32_MAX; }
constexpr int64_t tag_of(uint64_t word) { return static_cast<int64_t>(word >> 32) - 1; }
}  // namespace ep_record

}  // namespace xccl
