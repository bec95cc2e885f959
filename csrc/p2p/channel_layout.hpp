// The bytes of point to point: what each ordered pair of members shares. Drawn in docs/memory-layout.md.
//
// In the annex of the receiver's block (group/communicator_layout.hpp), for every member `from`:
//   ring    ring_records(members) records    written by `from`, read by the owner
//   words   one line, ChannelWords           written by `from`, read by the owner
// In the payload region of the sender, reserved when it first sends more than fits a record, for every member `to`:
//   eager   copies of buffered messages      written by the owner, pulled by `to`
//   stream  ring of a matched message's bytes on their way, the same
//
// DESIGN puts rings into the receiver's memory. The payload lies with the sender instead: it takes memory at the call
// that needs it and in the account of who asked for it, a send is buffered before the pair has ever talked, and both
// ends reach it alike. What a receiver polls, records and words, is in its own segment as everywhere.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "sync/record_layout.hpp"

namespace xccl {

// Written by one member about both directions of its traffic with the owner. They only grow. The loads and stores
// that a sleeping rank may wait for are seq_cst (doorbell.hpp), and acquire and release what the comments say.
struct alignas(cache_line) ChannelWords {
  std::atomic<uint64_t> produced;  // bytes the writer has put into its stream: they are there
  std::atomic<uint64_t>
      consumed;  // bytes the writer has taken from the owner's stream: they may be overwritten
  std::atomic<uint64_t> drained;  // records the writer has read: their places may be overwritten
  std::atomic<uint64_t>
      eager_freed;  // position up to which the owner's eager area is read: it may be overwritten
  std::atomic<uint64_t> matched;      // buffered messages of the owner that the writer has matched
  std::atomic<uint64_t> withdrawals;  // offers that the writer has wanted back
};
static_assert(sizeof(ChannelWords) == cache_line);

// One record. Word 0 of the payload is the head; what follows depends on the kind.
namespace p2p_record {
enum Kind : uint64_t {
  inlined = 1,    // the message itself: up to inline_bytes
  eager = 2,      // bytes, position in the eager area, key of the payload region
  offer = 3,      // bytes, id, key of a region and offset in it, whether the sender waits and can help
  grant = 4,      // id of an offer: the receiver expects its bytes next on the stream
  done = 5,       // id: the receiver has pulled it
  claim = 6,      // id: the receiver holds a view of it
  withdrawn = 7,  // id: the sender took it back
  stands = 8,     // id: the sender wanted it back, too late
  memory = 9,     // key of the payload region: what can be reached may be streamed all the same
};
enum Word : size_t { head, bytes, id, key0, key1, offset, helps };
constexpr size_t position = id;  // of an eager message

constexpr uint64_t inline_bytes = 48;
// In an offer, instead of an offset: the bytes lie where the receiver cannot reach them and must be streamed. The key
// is then that of the sender's payload region.
constexpr uint64_t to_be_streamed = UINT64_MAX;
constexpr uint64_t make_head(Kind kind, int tag, uint64_t inlined_bytes = 0) {
  return kind | inlined_bytes << 8 | static_cast<uint64_t>(static_cast<uint32_t>(tag)) << 32;
}
constexpr Kind kind_of(uint64_t word) { return static_cast<Kind>(word & 0xff); }
constexpr uint64_t inlined_bytes_of(uint64_t word) { return word >> 8 & 0xff; }
constexpr int tag_of(uint64_t word) { return static_cast<int>(static_cast<uint32_t>(word >> 32)); }
}  // namespace p2p_record
static_assert(sizeof(Payload) - sizeof(uint64_t) == p2p_record::inline_bytes);

// Sizes follow the number of members, so that a rank's part stays within a budget that does not grow with it.
struct ChannelLayout {
  uint64_t ring_records, eager_bytes, stream_bytes;
  uint64_t members;

  explicit ChannelLayout(int count) : members(static_cast<uint64_t>(count)) {
    const uint64_t share = std::bit_floor(std::max<uint64_t>(2048 / members, 1));
    ring_records = std::clamp<uint64_t>(share, 8, 256);
    const uint64_t room =
        std::clamp<uint64_t>(std::bit_floor((uint64_t{64} << 20) / members), 128 * 1024, 4 << 20);
    // Larger than a core's L2, where there are few members: lines that the peer has just read are slow to overwrite. And
    // no larger than that takes: both cores go round in it.
    stream_bytes = std::min<uint64_t>(room, 2 << 20);
    eager_bytes = room / 2;
  }

  // Of one message, so that several fit. The fewer members, the larger: what fits a job fits all its groups.
  uint64_t most_eager_bytes() const { return eager_bytes / 8; }

  uint64_t pair_lines() const { return ring_records * sizeof(Record) + sizeof(ChannelWords); }
  uint64_t annex_bytes() const { return members * pair_lines(); }
  uint64_t ring(int from) const { return static_cast<uint64_t>(from) * pair_lines(); }
  uint64_t words(int from) const { return ring(from) + ring_records * sizeof(Record); }

  uint64_t payload_bytes() const { return members * (eager_bytes + stream_bytes); }
  uint64_t eager(int to) const { return static_cast<uint64_t>(to) * (eager_bytes + stream_bytes); }
  uint64_t stream(int to) const { return eager(to) + eager_bytes; }
};

}  // namespace xccl
