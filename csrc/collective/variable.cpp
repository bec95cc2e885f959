#include "collective/variable.hpp"

#include "collective/arguments.hpp"

namespace xccl {

Room room_in(void* out, uint64_t capacity) {
  const auto make = [=](uint64_t rows) {
    if (rows > capacity)
      fail(Status::Truncated, "there is room for ", capacity, " rows, but ", rows, " have come");
    return out;
  };
  return {make, out, capacity};
}

void VariableRows::learn(Exchange& exchange, uint64_t own_rows, uint64_t own_rounds) {
  uint64_t all = 0;
  rounds_ = own_rounds;
  for (int member = 0; member < comm_.size(); ++member) {
    const bool own = member == comm_.rank();
    const uint64_t rows = own ? own_rows : exchange.rows(member),
                   rounds = own ? own_rounds : exchange.rounds(member);
    uint64_t given;
    if (__builtin_mul_overflow(rows, row_bytes_, &given) || given > beyond_memory)
      fail(Status::Failure, "rank ", comm_.job_rank(member), " announces ", rows, " rows of ", row_bytes_,
           " bytes: its record is damaged");
    counts_[member] = rows;
    all += rows;
    rounds_ = std::max(rounds_, rounds);
  }
  bytes_ = all * row_bytes_;
  try {
    to_ = static_cast<std::byte*>(room_.make(all));
  } catch (Error& error) {
    error.during(exchange.operation().name, exchange.operation().seq, "making room");
    refused_ = std::current_exception();
  } catch (...) {
    refused_ = std::current_exception();
  }
}

void VariableRows::receive(Exchange& exchange, uint64_t round, const Given& own, uint64_t rounds) {
  exchange.await_all();
  if (round == 0) learn(exchange, own.rows, rounds);
  exchange.expect(bytes_);
  exchange.operation().phase("pulling");
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
