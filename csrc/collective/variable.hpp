// What all_gather_v and all_to_all_v have in common: results whose size is known only once all ranks have said what
// they give. Included by those two, and through them by their callers.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>

#include "collective/exchange.hpp"

namespace xccl {

// Where the rows that come are put.
struct Room {
  // Asked once in a call, when the counts of all ranks are known and written: returns room for that many rows in all,
  // apart from those that are given. What it throws is raised when the call has served the other ranks; the communicator
  // stays usable.
  std::function<void*(uint64_t rows)> make;
  // Memory that the caller has already, for so many rows; it may not lie in what is given.
  const void* memory = nullptr;
  uint64_t capacity = 0;
};

// Room in memory that the caller has already: Truncated, naming both numbers, unless it suffices.
Room room_in(void* out, uint64_t capacity);

// The receiving side of a call, over its rounds.
class VariableRows {
 public:
  VariableRows(Communicator& comm, uint64_t row_bytes, const Room& room, uint64_t* counts)
      : comm_(comm), row_bytes_(row_bytes), room_(room), counts_(counts) {}

  // A round but for its publishing. `own`: what this rank gives itself in the whole call; `rounds`: how many it needs.
  void receive(Exchange& exchange, uint64_t round, const Given& own, uint64_t rounds);
  // Whether any rank needs a round of this number, from 0.
  bool needs(uint64_t round) const { return round < rounds_; }
  // After the call: raises what had to wait.
  void settle() const {
    if (refused_) std::rethrow_exception(refused_);
  }

 private:
  void learn(Exchange& exchange, uint64_t own_rows, uint64_t own_rounds);

  Communicator& comm_;
  const uint64_t row_bytes_;
  const Room& room_;
  uint64_t* counts_;
  uint64_t rounds_ = 1, bytes_ = 0;
  std::byte* to_ = nullptr;
  std::exception_ptr refused_;
};

}  // namespace xccl
