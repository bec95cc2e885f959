// The one way in which collectives move data: in rounds, each with one synchronisation. In a round every rank
//   publishes  copies what others need into its scratch memory, and writes a record to each of them
//   awaits     a record of each of them
//   pulls      what each has for it, from the other's scratch memory, or from the record itself if it is little
//   finishes
// Much that lies in the application area is lent instead of copied: the others pull it from there, and a round more, in
// which nobody is given anything, says that all have done so.
// A round is a call on the communicator's board. A record of round n + 1 says that its writer has finished round n; so
// who publishes round n + 2 has been told by everybody that nothing of round n is needed any more, neither the records
// nor the scratch memory (docs/architecture.md).
// Used by the collectives of this folder. Not here: which bytes go where.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "base/machine.hpp"
#include "base/test_point.hpp"
#include "collective/exchange_layout.hpp"
#include "group/communicator.hpp"

namespace xccl {

// What a rank gives a member in a round; and how many rows in the whole call, where that is not known to all.
struct Given {
  const std::byte* data;
  uint64_t bytes;
  uint64_t rows = 0;
};

// As it is called, for messages.
const char* name_of(Collective collective);

class Exchange {
 public:
  // size: what all ranks must say alike. agreed, of reduce_scatter_v: of what that is the hash, the elements of a row and
  // then the rows of each rank; it must outlive this object.
  Exchange(Communicator& comm, Operation& op, const ExchangeCall& call, uint64_t size,
           const uint64_t* agreed = nullptr)
      : comm_(comm), op_(op), call_(call.packed()), size_(size), agreed_(agreed) {}

  Operation& operation() { return op_; }

  // The most bytes that all can be given in a round, if they are the same for all.
  static uint64_t most_alike(const Communicator& comm) { return scratch_round_bytes(comm.size()); }
  // The most bytes that one member can be given in a round, if all are given as many.
  static uint64_t most_each(const Communicator& comm) {
    return round_down(most_alike(comm) / static_cast<uint64_t>(std::max(comm.size() - 1, 1)), cache_line);
  }

  // The same for pieces of several lengths: the most that they may be in all. Each may be a cache line longer than its
  // even share, and is rounded up to whole ones.
  static uint64_t most_together(const Communicator& comm) {
    const uint64_t most = most_alike(comm);
    return most - std::min(3 * cache_line * static_cast<uint64_t>(comm.size()), most / 2);
  }

  // Begins a round: every other member is given what give(member) says, a Given; in all at most most_alike(),
  // every piece rounded up to cache lines. `rounds`: how many this rank needs.
  template <class Give>
  void publish(Give give, uint64_t rounds = 1) {
    uint64_t at = begin([&] {
      uint64_t bytes = 0;
      for (int member = 0; member < comm_.size(); ++member)
        if (member != comm_.rank()) bytes += staged(give(member).bytes);
      return bytes;
    }());
    for (int step = 1; step < comm_.size(); ++step) {
      const int member = (comm_.rank() + step) % comm_.size();
      const Given given = give(member);
      stage(given, at);
      post(member, given, rounds, at);
      at += staged(given.bytes);
    }
    published();
  }

  // The same, where all are given the same.
  void publish_alike(const Given& given, uint64_t rounds = 1);

  // Waits for the member's record. Mismatch, on every rank, unless all make the same call.
  void await(int member) {
    if (!arrived(member)) wait(member);
    XCCL_TEST_POINT("exchange.arrived");
    const Payload& record = posted(member);
    if (record[exchange_record::call] != call_ || record[exchange_record::size] != size_) raise_mismatch();
    comm_.board().learn(member, seq_ - 1);  // or it would not have come to this round
  }
  void await_all() {
    for (int step = 1; step < comm_.size(); ++step) await((comm_.rank() + step) % comm_.size());
  }

  // All the bytes that this rank gives, as many as every rank's: if they are worth it, the others may pull them from
  // where they lie. Then all must conclude().
  void lend(const std::byte* data, uint64_t bytes);
  // Whether the member lends. Waits for its record.
  bool lends(int member);
  bool all_lend();
  // After the last round: waits until nobody needs what was lent.
  void conclude();

  // How many bytes every rank gets in the whole call, or about so: more than caches hold are written past them.
  void expect(uint64_t bytes) {
    past_caches_ = bytes >= shared_cache_bytes() / 2 / static_cast<uint64_t>(comm_.size());
  }

  // What the member's record of this round says; Failure if it cannot be.
  uint64_t rows(int member) const { return plausible(member, exchange_record::rows, 0); }
  uint64_t rounds(int member) const { return plausible(member, exchange_record::rounds, 1); }

  // Where the `bytes` lie that the member gives this rank in this round; null where they must be fetched.
  const std::byte* reach(int member, uint64_t bytes) {
    if (fits_record(bytes))
      return reinterpret_cast<const std::byte*>(&posted(member)[exchange_record::bytes]);
    const Place place = checked_place(member, bytes);
    return place.region->direct ? place.region->direct + place.offset : nullptr;
  }
  // Copies them; complete after finish(), or quiet().
  void pull(int member, void* to, uint64_t bytes) {
    if (bytes == 0) return;
    if (const std::byte* from = reach(member, bytes)) {
      past_caches_ ? copy_past_caches(to, from, bytes) : static_cast<void>(std::memcpy(to, from, bytes));
    } else {
      const Place place = checked_place(member, bytes);
      const Transfer transfer{to, place.offset, bytes};
      comm_.world().provider().get(*place.region, &transfer, 1);
    }
  }
  void quiet() { comm_.world().provider().quiet(); }

  // Ends a round in which all members have been awaited: this rank has read all that it needs of it.
  void finish();

 private:
  int own_rank() const { return comm_.job_rank(comm_.rank()); }
  bool fits_record(uint64_t bytes) const { return bytes <= exchange_record::most_inline && !agreed_; }
  uint64_t staged(uint64_t bytes) const {
    return lent_ || fits_record(bytes) ? 0 : round_up(bytes, cache_line);
  }
  bool arrived(int member) const { return comm_.board().arrived(member, seq_); }
  const Payload& posted(int member) const { return comm_.board().posted(member, seq_); }

  uint64_t begin(uint64_t bytes);  // gives the offset in the scratch memory
  void stage(const Given& given, uint64_t at) const {
    if (staged(given.bytes)) comm_.scratch().write(at, given.data, given.bytes);
  }
  void post(int member, const Given& given, uint64_t rounds, uint64_t at);
  void published();
  void wait(int member);
  uint64_t plausible(int member, exchange_record::Word word, uint64_t least) const;
  struct Place {
    const RemoteRegion* region;
    uint64_t offset;
  };
  Place checked_place(int member, uint64_t bytes);
  [[noreturn]] void raise_mismatch();
  std::string difference(int member);
  uint64_t agreed_bytes() const { return 8 * static_cast<uint64_t>(comm_.size() + 1); }
  std::string agreed_difference(int member);

  Communicator& comm_;
  Operation& op_;
  const uint64_t call_, size_;
  const uint64_t* agreed_;
  uint64_t agreed_at_ = 0;
  uint64_t seq_ = 0;
  bool past_caches_ = false;
  // What is lent: where it begins, here and for the others.
  struct Lent {
    const std::byte* data;
    Heap::Place place;
  };
  std::optional<Lent> lent_;
  bool lending_ = false;                            // somebody may lend
  std::vector<std::optional<RemoteRegion>> loans_;  // by member, once used
};

// Makes one call by it: runs body(exchange). `size`, `agreed`: as of the Exchange.
template <class Body>
void run_exchange(Communicator& comm, const ExchangeCall& call, uint64_t size, double timeout, Body body,
                  const uint64_t* agreed = nullptr) {
  comm.operate_in_rounds(name_of(call.collective), timeout, [&](Operation& op) {
    Exchange exchange(comm, op, call, size, agreed);
    body(exchange);
  });
}

// Pieces of the same size, but for the last, in which `total` bytes go in `rounds` rounds.
struct Pieces {
  uint64_t total, each;

  // As few rounds as pieces of at most `most` bytes allow.
  static Pieces of(uint64_t total, uint64_t most) { return in(total, (total + most - 1) / most); }
  static Pieces in(uint64_t total, uint64_t rounds) {
    return {total, rounds ? round_up((total + rounds - 1) / rounds, cache_line) : cache_line};
  }
  uint64_t rounds() const { return total ? (total + each - 1) / each : 1; }
  // Nothing is left for rounds after the last.
  uint64_t first(uint64_t round) const { return round < rounds() ? round * each : total; }
  uint64_t bytes(uint64_t round) const { return first(round + 1) - first(round); }
};

}  // namespace xccl
