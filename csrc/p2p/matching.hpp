// Matching: which receive gets which message. Receives wait in the order in which they were posted, messages in the
// order in which they came from each source; the first that fit each other meet. (MPI's rules.)
// Used by point_to_point.cpp. Searches are linear: hundreds of either are meant, not millions.
#pragma once

#include <memory>
#include <vector>

#include "p2p/request.hpp"

namespace xccl {

class Matching {
 public:
  explicit Matching(int members) : messages_(static_cast<size_t>(members)) {}
  ~Matching();
  Matching(const Matching&) = delete;
  Matching& operator=(const Matching&) = delete;

  // --- Receives ---
  void number(Request& receive) { receive.order = ++last_order_; }
  // In its place by number, also when it comes back.
  void post(Request& receive) {
    receive.state = Request::State::posted;
    posted_.insert(receive, &Request::order);
  }
  void remove(Request& receive) {
    receive.state = Request::State::idle;
    posted_.remove(receive);
  }
  // The first receive that a message of this source and tag may meet.
  Request* first_for(int source, int tag) const;
  Request* first() const { return posted_.front(); }

  // --- Messages ---
  void number(Message& message) { message.arrival = ++last_arrival_; }
  void add(std::unique_ptr<Message> message);  // in its place by number, also when it is put back
  // The message that a receive of this source and tag gets. Wildcards begin behind the source that was served last.
  Message* find(int source, int tag) const;
  Message* find_offer(int source, uint64_t id) const;
  Message* first_offer(int source) const;
  std::unique_ptr<Message> take(Message& message);

 private:
  Message* find_from(int source, int tag) const;

  List<Request> posted_;
  uint64_t last_order_ = 0, last_arrival_ = 0;
  std::vector<List<Message>> messages_;  // by source
  size_t turn_ = 0;
};

}  // namespace xccl
