// The receiver's side of point to point: posting, delivering each kind of message, lending, giving up.
#include <algorithm>
#include <cstring>

#include "base/test_point.hpp"
#include "p2p/point_to_point.hpp"

namespace xccl {
namespace {

RegionKey key_of(const Payload& record) { return {{record[p2p_record::key0], record[p2p_record::key1]}}; }

// Why a receive does not get the message that it has met: it fails, and the message stays.
std::optional<Error> refusal(const Request& request, const Message& message, int job_rank) {
  const auto error = [&](Status status, auto... why) {
    return Error(status,
                 text("a message of ", message.bytes, " bytes from rank ", job_rank, " with tag ",
                      message.tag, why...),
                 {job_rank});
  };
  if (!request.wants_view) {
    if (message.bytes <= request.bytes) return std::nullopt;
    return error(Status::Truncated, " does not fit in ", request.bytes,
                 " bytes; it stays for a larger receive");
  }
  const ViewSize& size = request.view_size;
  if (size.admits(message.bytes)) return std::nullopt;
  const char* what = size.exactly ? " is not an array of " : " is not made of elements of ";
  return error(Status::InvalidArgument, what, size.exactly.value_or(size.multiple_of),
               " bytes; it stays for another receive");
}

}  // namespace

MessageInfo PointToPoint::recv(void* data, uint64_t capacity, int src, int tag, double timeout) {
  const Frame frame(*this, "recv");
  check_peer("source", src, true);
  check_tag(tag, true);
  frame.about(*this, src);
  Request request(Request::Kind::receive, data, capacity, src, tag);
  const OwnRequest received{*this, request};
  post(request);
  if (!spin(request)) complete_receive(frame, "recv", request, timeout);
  return frame.about(*this, result(request));
}

std::shared_ptr<Request> PointToPoint::irecv(void* data, uint64_t capacity, int src, int tag,
                                             std::shared_ptr<void> keepalive) {
  const Frame frame(*this, "irecv");
  check_peer("source", src, true);
  check_tag(tag, true);
  frame.about(*this, src);
  auto request = std::make_shared<Request>(Request::Kind::receive, data, capacity, src, tag);
  request->keepalive = std::move(keepalive);
  request->self = request;
  post(*request);
  if (!request->finished()) wake_progress_thread();
  return request;
}

std::shared_ptr<View> PointToPoint::recv_view(int src, int tag, double timeout, const ViewSize& size) {
  const Frame frame(*this, "recv_view");
  check_peer("source", src, true);
  check_tag(tag, true);
  frame.about(*this, src);
  Request request(Request::Kind::receive, nullptr, 0, src, tag);
  request.wants_view = true;
  request.view_size = size;
  const OwnRequest received{*this, request};
  post(request);
  if (!spin(request)) complete_receive(frame, "recv_view", request, timeout);
  frame.about(*this, result(request));
  // Whoever drops it last releases it: release, so that what has been read of the message, in any thread, was read before.
  return {request.view.get(),
          [view = request.view](View* dropped) { dropped->released.store(true, std::memory_order_release); }};
}

void PointToPoint::complete_receive(const Frame& frame, const char* op, Request& request, double timeout,
                                    GivenUp given_up) {
  complete(
      frame, op, request.peer, timeout, [&] { return request.finished(); },
      [&] {
        give_up_receive(request);
        return given_up;
      });
}

std::optional<MessageInfo> PointToPoint::iprobe(int src, int tag) {
  const Frame frame(*this, "iprobe", nullptr);
  check_peer("source", src, true);
  check_tag(tag, true);
  std::optional<MessageInfo> info;
  // From anywhere: nobody in particular is needed, and that nothing is there is true also when all have closed.
  ask("iprobe", src == any_source ? comm_->rank() : src, [&] { return (info = find(src, tag)).has_value(); });
  return info;
}

std::optional<MessageInfo> PointToPoint::find(int src, int tag) {
  const Message* found = available(src, tag);
  if (!found) return std::nullopt;
  return MessageInfo{found->source, found->tag, found->bytes};
}

MessageInfo PointToPoint::probe(int src, int tag, double timeout) {
  const Frame frame(*this, "probe");
  check_peer("source", src, true);
  check_tag(tag, true);
  frame.about(*this, src);
  std::optional<MessageInfo> info;
  const auto there = [&] { return (info = find(src, tag)).has_value(); };
  advance();
  if (!there()) complete(frame, "probe", src, timeout, there, [] { return GivenUp::taken_back; });
  return *info;
}

// --- Matching ----------------------------------------------------------------------------------------

void PointToPoint::post(Request& request) {
  enter(request);
  matching_.number(request);
  const bool well = attempt([&] {
    if (!take_if_there(request)) matching_.post(request);
  });
  if (!well) raise_if_damaged();
}

// The message that such a receive gets now: none while it is in doubt whether its sender has taken it back, and none
// may overtake one that is held back for that.
Message* PointToPoint::available(int src, int tag) {
  Message* found = matching_.find(src, tag);
  if (!found) return nullptr;
  Channel& from = channel(found->source);
  if (found->is_offer() && from.in_doubt()) from.held = true;
  return from.held ? nullptr : found;
}

// True when the request is not to be posted: it has got its message, or failed.
bool PointToPoint::take_if_there(Request& request) {
  Message* found = available(request.peer, request.tag);
  if (!found) return false;
  if (const Fit fit = prepare(request, *found); fit != Fit::ready) return fit == Fit::refused;
  const auto message = matching_.take(*found);
  deliver(request, *message);
  return true;
}

void PointToPoint::arrived_message(Channel& from, const Payload& record) {
  const uint64_t head = record[p2p_record::head];
  Message message;
  matching_.number(message);
  message.source = from.member();
  message.tag = p2p_record::tag_of(head);
  message.record = record;
  message.bytes = record[p2p_record::bytes];
  if (message.kind() == p2p_record::inlined) message.bytes = p2p_record::inlined_bytes_of(head);
  if (message.kind() == p2p_record::inlined && message.bytes > p2p_record::inline_bytes)
    fail(Status::Failure, "rank ", from.job_rank(), "'s record is damaged");
  if (message.kind() == p2p_record::eager)
    message.segment = from.open_segment(record[p2p_record::position], message.bytes);
  if (!match_posted(message)) matching_.add(std::make_unique<Message>(std::move(message)));
}

bool PointToPoint::match_posted(Message& message) {
  Channel& from = channel(message.source);
  // A message may not overtake one that is held back.
  if (from.held) return false;
  while (Request* request = matching_.first_for(message.source, message.tag)) {
    if (message.is_offer() && from.in_doubt()) {
      from.held = true;
      return false;
    }
    matching_.remove(*request);
    switch (prepare(*request, message)) {
      case Fit::ready:
        deliver(*request, message);
        return true;
      case Fit::held:
        matching_.post(*request);
        return false;
      case Fit::refused:
        break;
    }
  }
  return false;
}

// Whether a receive, which is in no queue, gets its message. If so, all that delivering needs is at hand: a message that
// has been taken cannot be put back. If it is refused, the message stays.
PointToPoint::Fit PointToPoint::prepare(Request& request, const Message& message) {
  Channel& from = channel(message.source);
  if (auto refused = refusal(request, message, from.job_rank())) {
    fail_request(request, std::move(*refused));
    return Fit::refused;
  }
  try {
    XCCL_TEST_POINT("p2p.preparing");
    const Place place = place_of(from, message);
    if (request.wants_view) request.view = make_view(request, message, place);
    return Fit::ready;
  } catch (const std::bad_alloc&) {
    fail_request(request, current_error());
    return Fit::refused;
  } catch (...) {
    // Its sender has just taken it back and freed the array?
    from.held = message.is_offer() && from.in_doubt();
    if (from.held) return Fit::held;
    fail_request(request, current_error());
    throw;
  }
}

// --- Delivering --------------------------------------------------------------------------------------

void PointToPoint::deliver(Request& request, Message& message) {
  try {
    deliver_prepared(request, message);
  } catch (...) {
    channel(message.source).forget(request);
    leave(request);
    throw;
  }
}

void PointToPoint::deliver_prepared(Request& request, Message& message) {
  Channel& from = channel(message.source);
  request.info = {message.source, message.tag, message.bytes};
  request.arrival = message.arrival;
  if (message.kept) return deliver_kept(request, message);
  if (request.view && !request.view->copy) return lend(from, request, message);
  if (message.kind() == p2p_record::inlined) {
    XCCL_TEST_POINT("p2p.unpacking");
    if (message.bytes) std::memcpy(request.data, &message.record[1], message.bytes);
    from.count_matched();
    return finish(request);
  }
  const Place place = place_of(from, message);
  if (!place.region) return stream(from, request, message);
  if (message.is_offer()) {
    const bool shared = message.record[p2p_record::helps] && place.region->direct && from.can_stream();
    return shared ? stream(from, request, message) : pull(from, request, message, place);
  }
  from.read(*place.region, place.offset, request.data, message.bytes, message.bytes);
  XCCL_TEST_POINT("p2p.unbuffered");
  from.free_segment(*message.segment);
  from.count_matched();
  finish(request);
}

// What is to be read is attached, also the payload region of one that will be streamed.
PointToPoint::Place PointToPoint::place_of(Channel& from, const Message& message) {
  const Payload& record = message.record;
  if (message.kept || message.kind() == p2p_record::inlined) return {};
  if (message.kind() == p2p_record::eager)
    return {&from.peer_payload(key_of(record)), from.eager_offset(record[p2p_record::position])};
  if (record[p2p_record::offset] != p2p_record::to_be_streamed)
    return {&from.region(key_of(record)), record[p2p_record::offset]};
  from.peer_payload(key_of(record));
  return {};
}

std::shared_ptr<View> PointToPoint::make_view(Request& request, const Message& message, const Place& place) {
  auto view = std::make_shared<View>();
  view->info = {message.source, message.tag, message.bytes};
  if (place.region && place.region->direct) {
    if (place.offset > place.region->bytes || message.bytes > place.region->bytes - place.offset)
      fail(Status::Failure, "rank ", comm_->job_rank(message.source), "'s record is damaged");
    view->data = place.region->direct + place.offset;
    view->owner = place.region->keepalive;
    if (views_.size() == views_.capacity()) views_.reserve(2 * views_.size() + 8);
  } else {
    // It cannot be borrowed: received like any other message, into memory of the view.
    view->copy = std::make_unique_for_overwrite<std::byte[]>(message.bytes);
    view->data = request.data = view->copy.get();
  }
  return view;
}

void PointToPoint::stream(Channel& from, Request& request, Message& message) {
  request.state = Request::State::moving;
  const uint64_t id = message.record[p2p_record::id];
  from.expect({id, request.data, message.bytes, 0, &request, nullptr});
  XCCL_TEST_POINT("p2p.granting");
  from.post({p2p_record::make_head(p2p_record::grant, message.tag), message.bytes, id});
  XCCL_TEST_POINT("p2p.granted");
}

void PointToPoint::pull(Channel& from, Request& request, Message& message, const Place& place) {
  XCCL_TEST_POINT("p2p.pulling");
  from.read(*place.region, place.offset, request.data, message.bytes, message.bytes);
  XCCL_TEST_POINT("p2p.pulled");
  // Who failed may have freed its array while this rank was reading: it raised the alarm before.
  comm_->require_trust();
  const uint64_t id = message.record[p2p_record::id];
  const uint64_t answer =
      from.post({p2p_record::make_head(p2p_record::done, message.tag), message.bytes, id});
  XCCL_TEST_POINT("p2p.done");
  if (from.flushed() && !from.in_doubt() && from.settling.empty()) return finish(request);
  request.state = Request::State::moving;
  from.settling.push_back({id, request.data, message.bytes, message.bytes, &request, nullptr, answer});
}

void PointToPoint::lend(Channel& from, Request& request, Message& message) {
  View& view = *request.view;
  XCCL_TEST_POINT("p2p.lending");
  views_.push_back(request.view);
  busy_.fetch_add(1, std::memory_order_relaxed);
  if (!message.is_offer()) {
    view.segment = message.segment;
    from.count_matched();
    return finish(request);
  }
  const uint64_t id = message.record[p2p_record::id];
  view.offer = id;
  from.post({p2p_record::make_head(p2p_record::claim, message.tag), message.bytes, id});
  XCCL_TEST_POINT("p2p.lent");
  if (from.flushed() && !from.in_doubt() && from.settling.empty()) return finish(request);
  request.state = Request::State::moving;
  from.settling.push_back({id, nullptr, message.bytes, message.bytes, &request, nullptr});
}

void PointToPoint::return_views() {
  const auto returned = std::partition(views_.begin(), views_.end(), [](const auto& view) {
    // acquire: what was read of the view was read before it was released.
    return !view->released.load(std::memory_order_acquire);
  });
  for (auto one = returned; one != views_.end(); ++one) {
    Channel& from = channel((*one)->info.source);
    XCCL_TEST_POINT("p2p.returning");
    if ((*one)->segment) from.free_segment(*(*one)->segment);
    if ((*one)->offer)
      from.post({p2p_record::make_head(p2p_record::done, 0), (*one)->info.bytes, *(*one)->offer});
    busy_.fetch_sub(1, std::memory_order_relaxed);
  }
  views_.erase(returned, views_.end());
}

void PointToPoint::moved(Channel&, Delivery& delivery) {
  if (delivery.request)
    finish(*delivery.request);
  else
    delivery.message->complete = true;
}

// Completes what was pulled once nothing is in doubt any more, and looks again for messages that were held back.
void PointToPoint::settle(Channel& from) {
  if (!from.unsettled()) return;
  if (from.in_doubt() && !resolve(from)) return;
  if (from.flushed())
    for (Delivery& delivery : std::exchange(from.settling, {})) moved(from, delivery);
  if (!from.held) return;
  from.held = false;
  for (Request* request = matching_.first(); request;) {
    Request* next = request->next;
    matching_.remove(*request);
    if (!take_if_there(*request)) matching_.post(*request);
    request = next;
  }
}

// A rank that closes takes back all that it has offered, and gives no verdicts any more. But where it has read the answer
// the send had ended well before: the message stands.
bool PointToPoint::resolve(Channel& from) {
  // In this order: what it posted before it closed is there once it is seen to have closed.
  if (comm_->running(from.member()) || from.has_record()) return false;
  while (Message* offer = matching_.first_offer(from.member())) matching_.take(*offer);
  if (from.only_close_is_in_doubt()) {
    const auto late = std::stable_partition(
        from.settling.begin(), from.settling.end(),
        [&](const Delivery& delivery) { return delivery.answer && from.peer_has_read(delivery.answer); });
    std::vector<Delivery> standing(from.settling.begin(), late);
    from.settling.erase(from.settling.begin(), late);
    for (Delivery& delivery : standing) moved(from, delivery);
  }
  while (!from.settling.empty()) take_back(from, from.settling.back().id);
  from.assume_verdicts();
  return true;
}

void PointToPoint::take_back(Channel& from, uint64_t id) {
  XCCL_TEST_POINT("p2p.taking_back");
  if (Message* offer = matching_.find_offer(from.member(), id)) {
    matching_.take(*offer);
    return;
  }
  const auto gone = from.cancel_delivery(id);
  if (!gone) return;
  if (gone->message) {
    matching_.take(*gone->message);
    return;
  }
  Request& request = *gone->request;
  if (request.view) {
    if (std::erase(views_, request.view)) busy_.fetch_sub(1, std::memory_order_relaxed);
    request.view.reset();
  }
  matching_.post(request);
  from.held = true;  // it may match another message that is there
}

// --- Kept messages: a receive gave up while the bytes were coming, or its call did when they had -------------

void PointToPoint::give_up_receive(Request& request) {
  const bool arrived = request.finished();
  if (arrived ? request.error.has_value() : request.state != Request::State::moving) return forget(request);
  XCCL_TEST_POINT("p2p.keeping");
  auto message = std::make_unique<Message>();
  message->source = request.info.source;
  message->tag = request.info.tag;
  message->bytes = request.info.bytes;
  message->arrival = request.arrival;
  message->kept = true;
  message->complete = arrived;
  message->buffer = std::make_unique_for_overwrite<std::byte[]>(message->bytes);
  Delivery* delivery = arrived ? nullptr : channel(message->source).delivery_of(request);
  // A claimed view becomes a copy, too: the sender is then free to go on.
  const std::byte* there = request.view ? request.view->data : request.data;
  const uint64_t bytes = arrived ? message->bytes : delivery->moved;
  if (bytes) std::memcpy(message->buffer.get(), there, bytes);
  if (delivery) {
    delivery->to = message->buffer.get();
    delivery->request = nullptr;
    delivery->message = message.get();
    leave(request);
  }
  matching_.add(std::move(message));
}

void PointToPoint::deliver_kept(Request& request, Message& message) {
  if (message.complete) {
    if (message.bytes) std::memcpy(request.data, message.buffer.get(), message.bytes);
    return finish(request);
  }
  Delivery& delivery = *channel(message.source).delivery_of(message);
  if (delivery.moved) std::memcpy(request.data, message.buffer.get(), delivery.moved);
  delivery.to = request.data;
  delivery.request = &request;
  delivery.message = nullptr;
  request.state = Request::State::moving;
}

// Takes a request out of every queue. What was on its way to it is lost, which only an ended communicator may do.
void PointToPoint::forget(Request& request) {
  if (request.state == Request::State::idle) return;
  take_out(request);
  leave(request);
}

void PointToPoint::take_out(Request& request) {
  switch (request.state) {
    case Request::State::idle:
      return;
    case Request::State::posted:
      matching_.remove(request);
      break;
    case Request::State::waiting:
      channel(request.peer).waiting.remove(request);
      break;
    case Request::State::offered:
    case Request::State::claimed:
      channel(request.peer).offered.remove(request);
      break;
    case Request::State::moving:
      channel(request.kind == Request::Kind::send ? request.peer : request.info.source).forget(request);
      break;
  }
}

}  // namespace xccl
