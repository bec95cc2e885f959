// The frame of the calls, progress, and what is common to sending.cpp and receiving.cpp.
#include "p2p/point_to_point.hpp"

#include <algorithm>

#include "base/test_point.hpp"

namespace xccl {
namespace {
constexpr int spins_with_cores = 200;     // of PAUSE: some microseconds, in which most answers come
constexpr int spins_without = 1;          // more ranks than cores: whoever we wait for needs this one
constexpr uint64_t credit_interval = 64;  // calls of advance()

uint64_t eager_limit_of(const Communicator& comm, const Config& config, const ChannelLayout& layout) {
  const uint64_t most = layout.most_eager_bytes();
  if (config.eager_limit > most)
    fail(Status::InvalidArgument, "environment variable XCCL_EAGER_LIMIT=\"", config.eager_limit,
         "\": expected at most ", most, " bytes among ", comm.size(), " ranks");
  return config.eager_limit;
}
}  // namespace

PointToPoint::PointToPoint(std::shared_ptr<Communicator> comm)
    : comm_(std::move(comm)),
      layout_(comm_->size()),
      eager_limit_(eager_limit_of(*comm_, comm_->world().config(), layout_)),
      spins_(comm_->spins_freely() ? spins_with_cores : spins_without),
      payload_(comm_->share_world(), layout_),
      matching_(comm_->size()) {
  for (int member = 0; member < comm_->size(); ++member)
    channels_.push_back(std::make_unique<Channel>(comm_->group(), layout_, member, comm_->job_rank(member),
                                                  comm_->annex(comm_->rank()), comm_->annex(member),
                                                  payload_));
  comm_->set_engine(this);
}

PointToPoint::~PointToPoint() {
  if (!closed_) leave(false);
}

void PointToPoint::abandon_requests() {
  const Error closed(Status::Closed, "the communicator was closed before this request had finished");
  while (Request* receive = matching_.first()) {
    matching_.remove(*receive);
    fail_request(*receive, closed);
  }
  for (const auto& one : channels_) {
    // What was announced is taken back, for its array is free from here on. The verdict is that this rank has closed,
    // and how far it had read: what was answered until there stands.
    if (!comm_->world().forked() && (!one->offered.empty() || !one->flushed())) {
      one->publish_credits();
      one->announce_withdrawal();
    }
    one->abandon([&](Request& request) { fail_request(request, closed); });
  }
}

void PointToPoint::check_peer(const char* name, int member, bool wildcard) const {
  if ((wildcard && member == any_source) || (member >= 0 && member < comm_->size())) return;
  fail(Status::InvalidArgument, name, " is ", member, ": expected 0 to ", comm_->size() - 1,
       wildcard ? text(", or ", any_source, " for any") : "");
}

void PointToPoint::check_tag(int tag, bool wildcard) const {
  if (tag >= 0 || (wildcard && tag == any_tag)) return;
  fail(Status::InvalidArgument, "tag=", tag, ": expected 0 to ", INT32_MAX,
       wildcard ? text(", or ", any_tag, " for any") : "");
}

bool PointToPoint::needed(int peer, int member) const {
  if (peer != any_source) return member == peer;
  // From anywhere means from anybody who is still there.
  for (int other = 0; other < comm_->size(); ++other)
    if (other != comm_->rank() && comm_->running(other)) return false;
  return comm_->size() > 1;
}

void PointToPoint::raise_if_damaged() {
  if (!damaged_) return;
  comm_->end(*damaged_);
  throw *damaged_;
}

void PointToPoint::enter(Request& request) {
  (void)request;
  busy_.fetch_add(1, std::memory_order_relaxed);
}

void PointToPoint::leave(Request& request) {
  request.state = Request::State::idle;
  busy_.fetch_sub(1, std::memory_order_relaxed);
  request.keepalive.reset();
  const auto last = std::move(request.self);  // perhaps the last owner: nothing after this line
}

void PointToPoint::finish(Request& request) {
  // Let go of in the end: who asks whether it has finished may have what that takes, such as the GIL.
  const auto last = std::move(request.self);
  const auto array = std::move(request.keepalive);
  leave(request);
  request.set_finished();
}

void PointToPoint::fail_request(Request& request, Error error) {
  request.error = std::move(error);
  finish(request);
}

MessageInfo PointToPoint::result(const Request& request) {
  if (request.error) throw *request.error;
  return request.info;
}

void PointToPoint::arrived(Channel& channel, const Payload& record) {
  switch (p2p_record::kind_of(record[p2p_record::head])) {
    case p2p_record::inlined:
    case p2p_record::eager:
    case p2p_record::offer:
      return arrived_message(channel, record);
    case p2p_record::grant:
    case p2p_record::done:
    case p2p_record::claim:
      return answered(channel, record);
    case p2p_record::withdrawn:
      channel.count_verdict();
      return take_back(channel, record[p2p_record::id]);
    case p2p_record::stands:
      return channel.count_verdict();
    case p2p_record::memory:
      return static_cast<void>(channel.peer_payload({{record[p2p_record::key0], record[p2p_record::key1]}}));
  }
  fail(Status::Failure, "rank ", channel.job_rank(), " sent a record of an unknown kind");
}

void PointToPoint::advance_channel(Channel& channel) {
  if (channel.quiet()) return;
  channel.drain(*this);
  XCCL_TEST_POINT("p2p.drained");
  channel.pump_in(*this);
  channel.pump_out(*this);
  channel.copy_ahead();
  start_waiting(channel);
  settle(channel);
}

void PointToPoint::advance() noexcept {
  // In a forked child the rings are the parent's.
  if (damaged_ || closed_ || comm_->broken() || comm_->world().forked()) return;
  attempt([&] {
    for (const auto& one : channels_) advance_channel(*one);
    if (!views_.empty()) return_views();
    if (++advances_ % credit_interval == 0)
      for (const auto& one : channels_) one->publish_credits();
  });
}

// Whichever call this rank is in, perhaps one that has nothing to do with messages, others may be waiting for what it was
// to do meanwhile. So they are told now, and this rank's own call learns of it in its next look around.
void PointToPoint::damage(const Error& error) noexcept {
  damaged_ = error;
  comm_->end(Error(error).during("messages", calls_, "in the background"));
}

Error PointToPoint::current_error() {
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return Error(Status::OutOfMemory, text("private memory is used up: ", error.what()));
  }
}

uint64_t PointToPoint::moved() const noexcept {
  uint64_t bytes = 0;
  for (const auto& one : channels_) bytes += one->streamed();
  return bytes;
}

void PointToPoint::try_advance() noexcept {
  if (!comm_->try_hold()) return;
  advance();
  comm_->unhold();
}

bool PointToPoint::spin(const Request& request) {
  for (int i = 0; i < spins_; ++i) {
    if (request.peer == any_source || i % 16 == 15) {
      advance();
    } else if (!damaged_) {
      attempt([&] { advance_channel(channel(request.peer)); });
    }
    if (request.finished()) return true;
    cpu_relax();
  }
  return false;
}

MessageInfo PointToPoint::wait(Request& request, double timeout) {
  if (request.finished()) return result(request);
  const Frame frame(*this, "wait");
  frame.about(*this, request.peer);
  if (!spin(request))
    complete(
        frame, "wait", request.peer, timeout, [&] { return request.finished(); },
        [] { return GivenUp::taken_back; });
  return frame.about(*this, result(request));
}

bool PointToPoint::test(Request& request) {
  if (!request.finished()) {
    const Frame frame(*this, "test", nullptr);
    if (!ask("test", request.peer, [&] { return request.finished(); })) return false;
  }
  result(request);
  return true;
}

bool PointToPoint::cancel(Request& request) {
  if (request.finished()) return request.cancelled;
  const Frame frame(*this, "cancel");
  advance();
  raise_if_damaged();
  if (request.finished()) return false;
  try {
    const bool posted = request.state == Request::State::posted;
    if (posted) forget(request);
    if (!posted && (request.kind == Request::Kind::receive || !withdraw_send(request))) return false;
  } catch (...) {
    // Half withdrawn, nobody could go on from there.
    Error error = current_error();
    comm_->end(error.during("cancel", calls_, "withdrawing"));
    throw error;
  }
  request.cancelled = true;
  request.error = Error(Status::Closed, "this request has been cancelled");
  request.set_finished();
  return true;
}

MessageInfo PointToPoint::sendrecv(const void* data, uint64_t bytes, int dst, int send_tag, void* into,
                                   uint64_t capacity, int src, int recv_tag, double timeout,
                                   const Keep& keep) {
  const Frame frame(*this, "sendrecv");
  const Deadline deadline(timeout < 0 ? comm_->timeout() : timeout);
  const auto left = [&] { return static_cast<double>(deadline.remaining_ns()) * 1e-9; };
  check_peer("destination", dst, false);
  check_tag(send_tag, false);
  check_peer("source", src, true);
  check_tag(recv_tag, true);
  frame.about(*this, dst, bytes);
  Request receive(Request::Kind::receive, into, capacity, src, recv_tag);
  const OwnRequest received{*this, receive};
  post(receive);
  if (const auto sending = begin_send(data, bytes, dst, send_tag)) {
    const OwnRequest sent{*this, *sending};
    if (!spin(*sending))
      complete(
          frame, "send", dst, left(), [&] { return sending->finished(); },
          [&] {
            const GivenUp end = give_up_send(*sending, keep);
            if (end != GivenUp::done) give_up_receive(receive);
            return end;
          });
  }
  if (!spin(receive)) complete_receive(frame, "sendrecv", receive, left(), GivenUp::sent);
  return result(receive);
}

void PointToPoint::close(const Communicator::Hold&) {
  if (closed_) return;
  struct AtLast {  // also when Ctrl-C ends the wait
    PointToPoint& p2p;
    bool payload_is_read = false;
    ~AtLast() { p2p.leave(payload_is_read); }
  } at_last{*this};
  if (comm_->world().forked()) return;
  XCCL_TEST_POINT("p2p.closing");
  if (!comm_->broken() && !damaged_) {
    const Deadline deadline(comm_->timeout());
    comm_->drain(
        [&] {
          advance();
          return damaged_ || all_sent();
        },
        deadline);
    for (const auto& one : channels_) one->publish_credits();
  }
  at_last.payload_is_read = std::all_of(channels_.begin(), channels_.end(), [&](const auto& one) {
    return one->payload_is_read() || !comm_->running(one->member());
  });
}

void PointToPoint::leave(bool payload_is_read) {
  closed_ = true;
  comm_->set_engine(nullptr);
  abandon_requests();
  XCCL_TEST_POINT("p2p.abandoned");
  if (payload_is_read) return;
  if (const auto region = payload_.take()) comm_->leave_behind(*region);
}

}  // namespace xccl
