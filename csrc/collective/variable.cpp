#include "collective/variable.hpp"

namespace xccl {
namespace {
constexpr uint64_t beyond_memory = uint64_t{1} << 48;
}

Room room_in(void* out, uint64_t capacity) {
  return [=](uint64_t bytes) -> void* {
    if (bytes > capacity)
      fail(Status::Truncated, "out has room for ", capacity, " bytes, but ", bytes, " have come");
    return out;
  };
}

uint64_t bytes_of_rows(uint64_t count, uint64_t row_bytes) {
  uint64_t bytes;
  if (__builtin_mul_overflow(count, row_bytes, &bytes) || bytes > beyond_memory)
    fail(Status::InvalidArgument, count, " rows of ", row_bytes, " bytes are more than any memory");
  return bytes;
}

void VariableRows::learn(Operation& op, const Exchange& exchange, uint64_t own_rows, uint64_t own_rounds) {
  uint64_t bytes = 0;
  rounds_ = own_rounds;
  for (int member = 0; member < comm_.size(); ++member) {
    const bool own = member == comm_.rank();
    const uint64_t rows = own ? own_rows : exchange.rows(member),
                   rounds = own ? own_rounds : exchange.rounds(member);
    uint64_t given;
    if (__builtin_mul_overflow(rows, row_bytes_, &given) || given > beyond_memory || rounds == 0 ||
        rounds > beyond_memory / scratch_round_bytes)
      fail(Status::Failure, "rank ", member, " announces ", rows, " rows of ", row_bytes_, " bytes in ",
           rounds, " rounds: its record is damaged");
    counts_[member] = rows;
    bytes += given;
    rounds_ = std::max(rounds_, rounds);
  }
  try {
    to_ = static_cast<std::byte*>(room_(bytes));
  } catch (Error& error) {
    error.during(op.name, op.seq, "making room");
    refused_ = std::current_exception();
  } catch (...) {
    refused_ = std::current_exception();
  }
}

void VariableRows::receive(Operation& op, Exchange& exchange, uint64_t round, const Given& own,
                           uint64_t rounds) {
  exchange.await_all();
  if (round == 0) learn(op, exchange, own.rows, rounds);
  op.phase("pulling");
  std::byte* to = to_;
  for (int member = 0; member < comm_.size() && !refused_; ++member) {
    const uint64_t total = counts_[member] * row_bytes_;
    if (member != comm_.rank()) {
      const Pieces pieces = Pieces::in(total, exchange.rounds(member));
      exchange.pull(member, to + pieces.first(round), pieces.bytes(round));
    } else if (round == 0 && total) {
      std::memcpy(to, own.data, total);
    }
    to += total;
  }
  exchange.finish();
}

}  // namespace xccl
