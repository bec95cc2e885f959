#include "p2p/matching.hpp"

namespace xccl {

Matching::~Matching() {
  for (auto& list : messages_)
    while (Message* message = list.front()) take(*message);
}

Request* Matching::first_for(int source, int tag) const {
  for (Request* one = posted_.front(); one; one = one->next)
    if ((one->peer == any_source || one->peer == source) && (one->tag == any_tag || one->tag == tag))
      return one;
  return nullptr;
}

void Matching::add(std::unique_ptr<Message> message) {
  Message& added = *message.release();
  messages_[static_cast<size_t>(added.source)].insert(added, &Message::arrival);
}

Message* Matching::find(int source, int tag) const {
  if (source != any_source) return find_from(source, tag);
  for (size_t step = 0; step < messages_.size(); ++step) {
    const size_t at = (turn_ + step) % messages_.size();
    if (Message* found = find_from(static_cast<int>(at), tag)) return found;
  }
  return nullptr;
}

Message* Matching::find_from(int source, int tag) const {
  for (Message* one = messages_[static_cast<size_t>(source)].front(); one; one = one->next)
    if (tag == any_tag || one->tag == tag) return one;
  return nullptr;
}

Message* Matching::find_offer(int source, uint64_t id) const {
  for (Message* one = messages_[static_cast<size_t>(source)].front(); one; one = one->next)
    if (one->is_offer() && one->record[p2p_record::id] == id) return one;
  return nullptr;
}

Message* Matching::first_offer(int source) const {
  for (Message* one = messages_[static_cast<size_t>(source)].front(); one; one = one->next)
    if (one->is_offer()) return one;
  return nullptr;
}

std::unique_ptr<Message> Matching::take(Message& message) {
  turn_ = static_cast<size_t>(message.source) + 1;
  messages_[static_cast<size_t>(message.source)].remove(message);
  return std::unique_ptr<Message>(&message);
}

}  // namespace xccl
