#include "collective/split.hpp"

#include <algorithm>
#include <vector>

#include "base/test_point.hpp"
#include "collective/all_gather.hpp"

namespace xccl {
namespace {

struct Wish {
  int32_t color, key;
};

std::vector<int> members_of(const std::vector<Wish>& wishes, int color) {
  std::vector<int> out;
  for (size_t member = 0; member < wishes.size(); ++member)
    if (wishes[member].color == color) out.push_back(static_cast<int>(member));
  std::stable_sort(out.begin(), out.end(), [&](int a, int b) {
    return wishes[static_cast<size_t>(a)].key < wishes[static_cast<size_t>(b)].key;
  });
  return out;
}

}  // namespace

std::shared_ptr<Communicator> split(const std::shared_ptr<Communicator>& parent, int color, int key,
                                    double timeout) {
  if (color < -1)
    fail(Status::InvalidArgument, "color=", color, ": expected 0 or more, or -1 to be in no group");
  const auto size = static_cast<size_t>(parent->size());
  const Deadline deadline(timeout < 0 ? parent->timeout() : timeout);  // of both exchanges
  const auto left = [&] { return static_cast<double>(deadline.remaining_ns()) * 1e-9; };
  const Wish wish{color, key};
  std::vector<Wish> wishes(size);
  all_gather(*parent, &wish, wishes.data(), sizeof wish, timeout, Collective::split);

  return parent->tell_failure("split", [&]() -> std::shared_ptr<Communicator> {
    XCCL_TEST_POINT("split.met");
    std::shared_ptr<Communicator> made;
    Communicator::Card card{};
    std::vector<int> members;
    if (color >= 0) {
      members = members_of(wishes, color);
      made = Communicator::make(*parent, members);
      card = made->card();
    }
    XCCL_TEST_POINT("split.made");
    struct Announced {
      Communicator::Card card;
      uint64_t oldest_open;  // all objects made on the parent before this one are closed there
    };
    const Announced mine{card, parent->oldest_open()};
    std::vector<Announced> all(size);
    all_gather(*parent, &mine, all.data(), sizeof mine, left(), Collective::split);
    uint64_t oldest_open = UINT64_MAX;
    for (const Announced& one : all) oldest_open = std::min(oldest_open, one.oldest_open);
    parent->free_retired(oldest_open);
    const uint64_t id = parent->new_object();
    if (!made) return nullptr;
    std::vector<Communicator::Card> cards;
    for (const int member : members) cards.push_back(all[static_cast<size_t>(member)].card);
    // The others may be at work in the group already: it is there that they wait for this rank.
    made->tell_failure("split", [&] {
      XCCL_TEST_POINT("split.connecting");
      made->connect(cards, parent, id);
    });
    return made;
  });
}

}  // namespace xccl
