// An attempt, in which every step is a word that one member publishes, once, in its own segment, and that stays when the
// member dies:
//   arrived   it takes part in this attempt
//   decided   by the first member that takes part, once all that do have arrived: who survives
//   joined    by each survivor: its card, which says where its part of the new communicator is
// With all cards there, the attempt has succeeded; with a survivor gone that has published none, it has failed, and all
// go on to the next attempt. Both last, and exclude each other. The others' words are read where they are, in polls off
// the hot path.
#include "group/shrink.hpp"

#include <algorithm>
#include <utility>

#include "base/test_point.hpp"

namespace xccl {
namespace {

constexpr uint64_t arrived_word = offsetof(SurvivorWords, arrived);
constexpr uint64_t decided_word = offsetof(SurvivorWords, decided);
constexpr uint64_t joined_word = offsetof(SurvivorWords, joined);
constexpr uint64_t card_word(survivor_card::Word word) { return offsetof(SurvivorWords, card) + 8 * word; }
constexpr uint64_t bits_word(uint64_t index) { return sizeof(SurvivorWords) + 8 * index; }

std::atomic<uint64_t>* own_bits(Communicator& comm) {
  return reinterpret_cast<std::atomic<uint64_t>*>(&comm.survivor_words() + 1);
}

}  // namespace

std::shared_ptr<Communicator> shrink(const std::shared_ptr<Communicator>& comm, double timeout) {
  std::shared_ptr<Communicator> made;
  comm->operate_among_survivors("shrink", comm->shrinks(), timeout, [&](Operation& op) {
    made = comm->shrinking().run(comm, op);
    op.publish();  // the last thing: it counts
  });
  return made;
}

// The words only grow, and nobody comes to the next attempt before this one has ended for all: so these stay true as
// long as this rank asks.
bool Shrinking::has_arrived(int member) { return comm_.survivor_word(member, arrived_word) >= attempt_; }
bool Shrinking::has_decided(int member) { return comm_.survivor_word(member, decided_word) >= attempt_; }
bool Shrinking::has_joined(int member) { return comm_.survivor_word(member, joined_word) >= attempt_; }

// Every step may have been done already, in a call that ended in the middle.
std::shared_ptr<Communicator> Shrinking::run(const std::shared_ptr<Communicator>& comm, Operation& op) {
  for (;; ++attempt_) {
    comm_.publish_as_survivor(
        [&] { comm_.survivor_words().arrived.store(attempt_, std::memory_order_release); });
    XCCL_TEST_POINT("shrink.arrived");
    op.phase("meeting");
    await_decision(op);
    XCCL_TEST_POINT("shrink.decided");
    op.phase("joining");
    join();
    XCCL_TEST_POINT("shrink.joined");
    if (await_cards(op)) return connect(comm);
    made_->unmake();
    made_.reset();
  }
}

template <class Ready, class Late>
void Shrinking::await(Operation& op, Ready ready, Late late) {
  World& world = comm_.world();
  const auto look = [&] {
    comm_.require_not_left();  // another thread has aborted
    world.hear();
    world.look();
  };
  look();
  const auto first_late = [&] {
    const std::vector<int> members = late();
    return members.empty() ? -1 : members[0];
  };
  while (!comm_.poll(op, first_late(), ready, look)) {
    std::vector<bool> done(static_cast<size_t>(comm_.size()), true);
    const std::vector<int> members = late();
    for (const int member : members) done[static_cast<size_t>(member)] = false;
    if (!members.empty()) comm_.raise_timeout(op, done, members[0]);
    // All have come in the last moment.
  }
}

// --- Who survives ------------------------------------------------------------------------------------

void Shrinking::await_decision(Operation& op) {
  int by = -1;
  const auto decided = [&] { return (by = decider()) >= 0; };
  await(op, decided, [&] { return late_to_meet(); });
  survivors_ = survivors_by(by);
}

// Who has not come; all have: who should have decided.
std::vector<int> Shrinking::late_to_meet() {
  std::vector<int> absent, here;
  for (int member = 0; member < comm_.size(); ++member)
    if (member == comm_.rank() || comm_.takes_part(member))
      (member == comm_.rank() || has_arrived(member) ? here : absent).push_back(member);
  if (absent.empty() && here[0] != comm_.rank()) return {here[0]};
  return absent;
}

// The member that has decided this attempt, -1: nobody yet. Only the first that takes part may decide, so a decision
// rests with it until it has gone; and once it has gone without one, it will never make one. Hence only one member ever
// decides an attempt.
int Shrinking::decider() {
  for (int member = 0; member < comm_.size(); ++member) {
    if (has_decided(member)) return member;
    if (member == comm_.rank()) return decide() ? member : -1;
    if (comm_.takes_part(member)) return -1;
    if (has_decided(member)) return member;  // just before it went
  }
  return -1;
}

bool Shrinking::decide() {
  std::vector<uint64_t> bits(survivor_bits_words(comm_.size()), 0);
  for (int member = 0; member < comm_.size(); ++member) {
    if (member != comm_.rank()) {
      if (!comm_.takes_part(member)) continue;
      if (!has_arrived(member)) return false;
    }
    bits[static_cast<size_t>(member) / 64] |= uint64_t{1} << member % 64;
  }
  XCCL_TEST_POINT("shrink.deciding");
  comm_.publish_as_survivor([&] {
    // Relaxed: published by the word that follows.
    for (size_t i = 0; i < bits.size(); ++i) own_bits(comm_)[i].store(bits[i], std::memory_order_relaxed);
    comm_.survivor_words().decided.store(attempt_, std::memory_order_release);
  });
  return true;
}

std::vector<int> Shrinking::survivors_by(int decider) {
  std::vector<int> survivors;
  for (uint64_t index = 0; index < survivor_bits_words(comm_.size()); ++index) {
    const uint64_t bits = comm_.survivor_word(decider, bits_word(index));
    for (uint64_t bit = 0; bit < 64; ++bit) {
      const uint64_t member = 64 * index + bit;
      if ((bits >> bit & 1) && member < static_cast<uint64_t>(comm_.size()))
        survivors.push_back(static_cast<int>(member));
    }
  }
  comm_.require_not_left();
  if (std::find(survivors.begin(), survivors.end(), comm_.rank()) == survivors.end())
    fail(Status::Failure, "rank ", comm_.job_rank(decider),
         " has decided that this rank does not survive: its record is damaged");
  return survivors;
}

// --- The new communicator ----------------------------------------------------------------------------

void Shrinking::join() {
  if (!made_) made_ = Communicator::make(comm_, survivors_);
  const Communicator::Card card = made_->card();
  XCCL_TEST_POINT("shrink.made");
  using namespace survivor_card;
  const std::pair<Word, uint64_t> words[] = {{block, card.block},
                                             {scratch0, card.scratch.words[0]},
                                             {scratch1, card.scratch.words[1]},
                                             {next_object, comm_.next_object()},
                                             {oldest_open, comm_.oldest_open()}};
  comm_.publish_as_survivor([&] {
    SurvivorWords& own = comm_.survivor_words();
    if (own.joined.load(std::memory_order_relaxed) == attempt_) return;  // by an earlier call
    // Relaxed: published by the word that follows.
    for (const auto& [word, value] : words) own.card[word].store(value, std::memory_order_relaxed);
    own.joined.store(attempt_, std::memory_order_release);
  });
}

// False when a survivor has gone without a card.
bool Shrinking::await_cards(Operation& op) {
  bool complete = false;
  const auto ended = [&] {
    complete = true;
    for (const int member : survivors_) {
      if (has_joined(member)) continue;
      complete = false;
      if (!comm_.takes_part(member) && !has_joined(member)) return true;  // it did not, just before it went
    }
    return complete;
  };
  await(op, ended, [&] {
    std::vector<int> absent;
    for (const int member : survivors_)
      if (!has_joined(member) && comm_.takes_part(member)) absent.push_back(member);
    return absent;
  });
  return complete;
}

std::shared_ptr<Communicator> Shrinking::connect(const std::shared_ptr<Communicator>& comm) {
  std::vector<Communicator::Card> cards;
  uint64_t id = 0, oldest_open = UINT64_MAX;
  for (const int member : survivors_) {
    const auto word = [&](survivor_card::Word which) {
      return comm_.survivor_word(member, card_word(which));
    };
    cards.push_back(
        {word(survivor_card::block), {{word(survivor_card::scratch0), word(survivor_card::scratch1)}}});
    id = std::max(id, word(survivor_card::next_object));
    oldest_open = std::min(oldest_open, word(survivor_card::oldest_open));
  }
  XCCL_TEST_POINT("shrink.connecting");
  if (others_are_gone()) comm_.free_retired(oldest_open);
  made_->connect(cards, comm, id);
  ++attempt_;
  return std::exchange(made_, nullptr);
}

// Who has left but lives may still use what was made on the communicator.
bool Shrinking::others_are_gone() {
  World& world = comm_.world();
  for (int member = 0; member < comm_.size(); ++member) {
    if (std::find(survivors_.begin(), survivors_.end(), member) != survivors_.end()) continue;
    const int rank = comm_.job_rank(member);
    if (world.flag(rank) != PeerFlag::dead && world.state(rank) != RankState::closed) return false;
  }
  return true;
}

Communicator::Remains Shrinking::abandon() {
  if (!made_) return {};
  const auto made = std::exchange(made_, nullptr);
  if (comm_.survivor_words().joined.load(std::memory_order_relaxed) == attempt_) return made->forsake();
  made->unmake();
  return {};
}

}  // namespace xccl
