// The sender's side of point to point: the choice of path, announcements and their answers, taking a message back.
#include <algorithm>
#include <cstring>

#include "base/test_point.hpp"
#include "p2p/point_to_point.hpp"

namespace xccl {
namespace {
// Smaller arrays are streamed by a sender that waits, even if the receiver can reach them: two cores copy, and the
// array's lines stay with the sender, who will write them again. Lines that another core has read are slow to write:
// one way and back through the same array, 64 KiB take 8 us by one copy and 3 by two, 1 MiB 75 and 40. Larger arrays
// have left the reader's own cache by then.
constexpr uint64_t pulled_from = 4 << 20;
}  // namespace

std::shared_ptr<Request> PointToPoint::make_send(const void* data, uint64_t bytes, int dst, int tag) {
  auto request = std::make_shared<Request>(Request::Kind::send, data, bytes, dst, tag);
  request->info = {dst, tag, bytes};
  return request;
}

void PointToPoint::send(const void* data, uint64_t bytes, int dst, int tag, double timeout,
                        const Keep& keep) {
  const Frame frame(*this, "send");
  check_peer("destination", dst, false);
  check_tag(tag, false);
  frame.about(*this, dst, bytes);
  const auto request = begin_send(data, bytes, dst, tag);
  if (!request) return;
  const OwnRequest sent{*this, *request};
  if (spin(*request)) return;
  complete(
      frame, "send", dst, timeout, [&] { return request->finished(); },
      [&] { return give_up_send(*request, keep); });
}

// Null when the message has been buffered and nothing is left to be done.
std::shared_ptr<Request> PointToPoint::begin_send(const void* data, uint64_t bytes, int dst, int tag) {
  Channel& to = channel(dst);
  if (to.waiting.empty() && to.has_room() && start_buffered(to, data, bytes, tag)) return nullptr;
  auto request = make_send(data, bytes, dst, tag);
  request->waited_for = true;
  submit(request);
  if (!request->finished()) wake_progress_thread();
  return request;
}

std::shared_ptr<Request> PointToPoint::isend(const void* data, uint64_t bytes, int dst, int tag,
                                             std::shared_ptr<void> keepalive) {
  const Frame frame(*this, "isend");
  check_peer("destination", dst, false);
  check_tag(tag, false);
  frame.about(*this, dst, bytes);
  if (!channel(dst).all_sent()) ask("isend", dst, [] { return false; });  // not buffered: time to look
  auto request = make_send(data, bytes, dst, tag);
  request->keepalive = std::move(keepalive);
  submit(request);
  return request;
}

void PointToPoint::submit(const std::shared_ptr<Request>& request) {
  Channel& to = channel(request->peer);
  enter(*request);
  request->self = request;
  try {
    if (to.waiting.empty() && start(to, *request)) return;
  } catch (...) {
    take_out(*request);
    leave(*request);
    throw;
  }
  request->state = Request::State::waiting;
  to.waiting.push_back(*request);
}

bool PointToPoint::start(Channel& to, Request& request) {
  if (!to.has_room()) return false;
  if (start_buffered(to, request.data, request.bytes, request.tag))
    finish(request);
  else
    offer(to, request);
  return true;
}

bool PointToPoint::start_buffered(Channel& to, const void* data, uint64_t bytes, int tag) {
  if (bytes > p2p_record::inline_bytes && bytes > eager_limit_) return false;
  if (!to.may_buffer()) return false;
  Payload record;
  if (bytes <= p2p_record::inline_bytes) {
    record[p2p_record::head] = p2p_record::make_head(p2p_record::inlined, tag, bytes);
    if (bytes) std::memcpy(&record[1], data, bytes);
    if (bytes < p2p_record::inline_bytes)  // nothing of our stack leaves
      std::memset(reinterpret_cast<std::byte*>(&record[1]) + bytes, 0, p2p_record::inline_bytes - bytes);
  } else {
    const auto position = to.take_eager(bytes);
    if (!position) return false;
    to.put_eager(*position, data, bytes);
    const RegionKey key = payload_.region().key;
    record = {p2p_record::make_head(p2p_record::eager, tag), bytes, *position, key.words[0], key.words[1]};
  }
  to.count_buffered();
  XCCL_TEST_POINT("p2p.buffered");
  to.post(record);
  return true;
}

void PointToPoint::offer(Channel& to, Request& request) {
  const auto place = comm_->world().heap().find(request.data, request.bytes);
  const RegionKey key = place ? place->key : payload_.region().key;
  const bool helps = place && request.waited_for && request.bytes < pulled_from;
  if (helps) to.tell_payload();
  request.streams = !place || (helps && to.direct());
  request.id = to.next_id();
  XCCL_TEST_POINT("p2p.offering");
  to.post({p2p_record::make_head(p2p_record::offer, request.tag), request.bytes, request.id, key.words[0],
           key.words[1], place ? place->offset : p2p_record::to_be_streamed, helps});
  request.state = Request::State::offered;
  to.offered.push_back(request);
  XCCL_TEST_POINT("p2p.offered");
}

void PointToPoint::start_waiting(Channel& to) {
  while (Request* request = to.waiting.front()) {
    if (!to.has_room()) return;
    take_out(*request);
    request->state = Request::State::idle;
    try {
      start(to, *request);
    } catch (const std::exception&) {
      take_out(*request);
      fail_request(*request, current_error());
    }
  }
}

void PointToPoint::answered(Channel& from, const Payload& record) {
  Request* request = from.offered.front();
  while (request && request->id != record[p2p_record::id]) request = request->next;
  if (!request) return;  // taken back; the peer has been told, or will be
  XCCL_TEST_POINT("p2p.answered");
  switch (p2p_record::kind_of(record[p2p_record::head])) {
    case p2p_record::claim:
      request->state = Request::State::claimed;
      return;
    case p2p_record::done:
      from.offered.remove(*request);
      return finish(*request);
    default:  // grant
      from.offered.remove(*request);
      request->state = Request::State::moving;
      from.stream_out(*request);
  }
}

// The receiver may be answering at this very moment. Both sides first store, then look: this one its withdrawal and
// then for answers, the other its answer and then for withdrawals. So either this rank sees the answer, and the message
// stands, or the other sees the withdrawal, and waits for the verdict that follows.
bool PointToPoint::withdraw_send(Request& request) {
  Channel& to = channel(request.peer);
  if (request.state == Request::State::waiting) {
    forget(request);
    return true;
  }
  if (request.state != Request::State::offered) return false;
  to.announce_withdrawal();
  XCCL_TEST_POINT("p2p.withdrawing");
  to.drain(*this);
  XCCL_TEST_POINT("p2p.verdict");
  const bool stands = request.state != Request::State::offered;
  to.post({p2p_record::make_head(stands ? p2p_record::stands : p2p_record::withdrawn, request.tag),
           request.bytes, request.id});
  XCCL_TEST_POINT("p2p.withdrawn");
  if (!stands) forget(request);
  return !stands;
}

PointToPoint::GivenUp PointToPoint::give_up_send(Request& request) {
  if (withdraw_send(request)) return GivenUp::taken_back;
  if (request.state == Request::State::claimed) return GivenUp::lent;
  if (request.state == Request::State::moving) detach(request);
  return GivenUp::done;
}

PointToPoint::GivenUp PointToPoint::give_up_send(Request& request, const Keep& keep) {
  const GivenUp end = give_up_send(request);
  if (end == GivenUp::lent && keep) request.keepalive = keep();
  return end;
}

// The message is on its way and cannot come back: what is still to be copied is kept, and the send counts as done.
void PointToPoint::detach(Request& request) {
  XCCL_TEST_POINT("p2p.detaching");
  auto rest = make_send(nullptr, request.bytes - request.moved, request.peer, request.tag);
  rest->rest = std::make_unique_for_overwrite<std::byte[]>(rest->bytes);
  rest->data = rest->rest.get();
  std::memcpy(rest->data, request.data + request.moved, rest->bytes);
  rest->state = Request::State::moving;
  rest->self = rest;
  channel(request.peer).replace(request, *rest);
  enter(*rest);
  finish(request);
}

bool PointToPoint::all_sent() {
  // What was meant for this rank itself, nobody will ask for any more.
  return std::all_of(channels_.begin(), channels_.end(), [&](const auto& one) {
    return one->all_sent() || one->member() == comm_->rank() || !comm_->running(one->member());
  });
}

}  // namespace xccl
