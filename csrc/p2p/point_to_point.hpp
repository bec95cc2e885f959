// Point to point on a communicator: send, receive, probe, borrowed messages. The calls as bindings and the C library
// make them; how bytes travel is in channel.hpp, who gets which message in matching.hpp.
//
// A message takes one of four paths, chosen by its size and by where the sender's array lies:
//   inlined   up to 48 bytes ride in the record itself
//   eager     up to eager_limit: copied to the sender's eager area; the send is complete; the receiver pulls it
//   pulled    an array of the application area is announced; the receiver pulls it where it lies: one copy
//   chunked   any other array is announced; once matched, sender and receiver copy pieces through a ring at once
// When the buffers of the first two are full, a message is announced. So sends block, but never each other's tags.
//
// Messages of a pair and tag arrive in order. One thread at a time, as everywhere on a communicator. Errors: besides
// those named, PeerLost, PeerFailed, Closed (the peer has closed). Deadlines in seconds; negative: the default.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "group/communicator.hpp"
#include "p2p/channel.hpp"
#include "p2p/matching.hpp"

namespace xccl {

class PointToPoint : public Engine, private RecordHandler {
 public:
  // For Communicator::init.
  static uint64_t annex_bytes(int members) { return ChannelLayout(members).annex_bytes(); }

  explicit PointToPoint(std::shared_ptr<Communicator> comm);
  ~PointToPoint() override;
  PointToPoint(const PointToPoint&) = delete;
  PointToPoint& operator=(const PointToPoint&) = delete;

  Communicator& comm() { return *comm_; }

  // Keeps an array alive beyond the call. Called in the call, by its thread.
  using Keep = std::function<std::shared_ptr<void>()>;

  // Returns when `data` may be reused. Timeout: the message was not sent and the call may be repeated; but if its phase
  // is "lent", the message was sent, and the receiver reads `data` until it releases its view: `keep` is held until then.
  void send(const void* data, uint64_t bytes, int dst, int tag, double timeout = -1, const Keep& keep = {});
  // src, tag: any_source, any_tag match all. Truncated, naming both sizes, leaves the message for a larger receive;
  // Timeout takes nothing.
  MessageInfo recv(void* data, uint64_t capacity, int src, int tag, double timeout = -1);
  // The array must stay as it is until the request has finished; `keepalive` is held until then.
  std::shared_ptr<Request> isend(const void* data, uint64_t bytes, int dst, int tag,
                                 std::shared_ptr<void> keepalive = nullptr);
  std::shared_ptr<Request> irecv(void* data, uint64_t capacity, int src, int tag,
                                 std::shared_ptr<void> keepalive = nullptr);
  // Timeout takes nothing. In operation "send", it has not sent either (or lent, see there); in "sendrecv" it has.
  MessageInfo sendrecv(const void* data, uint64_t bytes, int dst, int send_tag, void* into, uint64_t capacity,
                       int src, int recv_tag, double timeout = -1, const Keep& keep = {});

  // Waits for a request and tells its message; raises its error. Timeout leaves the request as it is.
  MessageInfo wait(Request& request, double timeout = -1);
  // Whether it has finished; raises its error.
  bool test(Request& request);
  // Withdraws it. True: nothing was sent or taken, nor ever will be, and its array is free; waiting for it raises Closed.
  // False: it has been matched, or buffered, or has failed; wait for it. Exact, as giving up is. Never waits.
  bool cancel(Request& request);
  // The first message that such a receive would get, without taking it.
  MessageInfo probe(int src, int tag, double timeout = -1);
  std::optional<MessageInfo> iprobe(int src, int tag);
  // Borrows a message where it lies. Set `released`, or drop the view, and the sender may go on.
  // InvalidArgument leaves a message that has not the size.
  std::shared_ptr<View> recv_view(int src, int tag, double timeout = -1, const ViewSize& size = {});

  // Not collective: waits, within the deadline, until what this rank has sent needs its help no more.
  void close() {
    if (!closed_) close(Communicator::Hold(*comm_, "close"));
  }
  void close(const Communicator::Hold& hold);

  // --- Engine ---
  void advance() noexcept override;
  void try_advance() noexcept override;
  bool unfinished() const noexcept override { return busy_.load(std::memory_order_relaxed) > 0; }
  uint64_t moved() const noexcept override;

 private:
  // What became of a call whose time has passed.
  enum class GivenUp {
    done,        // it was not too late after all
    taken_back,  // nothing has happened
    lent,        // a message was sent; the receiver reads the array
    sent,        // a sendrecv has sent its message, and taken none
  };

  struct Frame;
  struct OwnRequest;
  Channel& channel(int member) const { return *channels_[static_cast<size_t>(member)]; }
  void wake_progress_thread() const {
    if (ProgressThread* thread = comm_->world().progress_thread()) thread->wake();
  }
  void check_peer(const char* name, int member, bool wildcard) const;
  void check_tag(int tag, bool wildcard) const;
  // Whether a call that waits for `peer` needs this member.
  bool needed(int peer, int member) const;
  // Tells whether ready(); if not, notices now and then what a call that waits would.
  template <class Ready>
  bool ask(const char* op, int peer, Ready ready);

  // Waits, so that others can see it, until done(), and asks give_up() when that fails. See receiving.cpp.
  template <class Done, class GiveUp>
  void complete(const Frame& frame, const char* op, int peer, double timeout, Done done, GiveUp give_up);
  // Looks for a moment, for what is just about to come.
  bool spin(const Request& request);
  static MessageInfo result(const Request& request);

  // --- sending.cpp ---
  static std::shared_ptr<Request> make_send(const void* data, uint64_t bytes, int dst, int tag);
  std::shared_ptr<Request> begin_send(const void* data, uint64_t bytes, int dst, int tag);
  void submit(const std::shared_ptr<Request>& request);
  bool start(Channel& channel, Request& request);
  bool start_buffered(Channel& channel, const void* data, uint64_t bytes, int tag);
  void offer(Channel& channel, Request& request);
  void start_waiting(Channel& channel);
  bool withdraw_send(Request& request);
  GivenUp give_up_send(Request& request);
  GivenUp give_up_send(Request& request, const Keep& keep);
  void detach(Request& request);
  void answered(Channel& channel, const Payload& record);
  bool all_sent();

  // --- receiving.cpp ---
  std::optional<MessageInfo> find(int src, int tag);
  void post(Request& request);
  void complete_receive(const Frame& frame, const char* op, Request& request, double timeout,
                        GivenUp given_up = GivenUp::taken_back);
  Message* available(int src, int tag);
  bool take_if_there(Request& request);
  void arrived_message(Channel& channel, const Payload& record);
  bool match_posted(Message& message);
  enum class Fit { ready, refused, held };
  Fit prepare(Request& request, const Message& message);
  struct Place {  // where the bytes of a message lie; nothing if they cannot be reached
    const RemoteRegion* region = nullptr;
    uint64_t offset = 0;
  };
  Place place_of(Channel& channel, const Message& message);
  std::shared_ptr<View> make_view(Request& request, const Message& message, const Place& place);
  void deliver(Request& request, Message& message);
  void deliver_prepared(Request& request, Message& message);
  void deliver_kept(Request& request, Message& message);
  void stream(Channel& channel, Request& request, Message& message);
  void pull(Channel& channel, Request& request, Message& message, const Place& place);
  void lend(Channel& channel, Request& request, Message& message);
  void settle(Channel& channel);
  bool resolve(Channel& channel);
  void take_back(Channel& channel, uint64_t id);
  void give_up_receive(Request& request);
  void forget(Request& request);
  void take_out(Request& request);  // of the queue that it is in, if it is in one
  void return_views();

  // --- RecordHandler ---
  void arrived(Channel& channel, const Payload& record) override;
  void moved(Channel& channel, Delivery& delivery) override;
  void sent(Request& request) override { finish(request); }

  void advance_channel(Channel& channel);
  // Keeps what goes wrong for the call that asks for it, and tells the others; tells whether nothing did.
  template <class Work>
  bool attempt(Work work) noexcept {
    try {
      work();
      return true;
    } catch (...) {
      if (!damaged_) damage(current_error());
      return false;
    }
  }
  void damage(const Error& error) noexcept;
  static Error current_error();  // the exception being handled
  void enter(Request& request);  // it is in a queue from here on
  void leave(Request& request);
  void finish(Request& request);
  void fail_request(Request& request, Error error);
  void raise_if_damaged();
  void abandon_requests();
  void leave(bool payload_is_read);

  std::shared_ptr<Communicator> comm_;
  ChannelLayout layout_;
  uint64_t eager_limit_;
  int spins_;
  PayloadMemory payload_;
  std::vector<std::unique_ptr<Channel>> channels_;  // by member
  Matching matching_;
  std::vector<std::shared_ptr<View>> views_;  // lent, and not yet given back
  std::atomic<int64_t> busy_{0};              // requests in queues, and views
  uint64_t calls_ = 0;                        // of all operations here, for messages
  uint64_t advances_ = 0;
  std::optional<Error> damaged_;  // what went wrong inside advance()
  bool closed_ = false;
};

// One call, from its beginning to its end: the communicator is held, and fit for use.
struct PointToPoint::Frame {
  Communicator::Hold hold;
  mutable Span span;  // of the trace
  Frame(PointToPoint& p2p, const char* op) : Frame(p2p, op, p2p.comm_->trace()) {}
  // For calls that only ask: made again and again, they would fill the trace.
  Frame(PointToPoint& p2p, const char* op, Trace* trace)
      : hold(*p2p.comm_, op), span(trace, Trace::Event::Kind::operation, op, p2p.calls_ + 1) {
    p2p.comm_->require_fine(op, ++p2p.calls_);
    p2p.raise_if_damaged();
  }
  // With whom, a member or any_source, and how much it moves, as far as that is known.
  void about(const PointToPoint& p2p, int member, uint64_t bytes = Trace::unknown) const {
    if (!p2p.comm_->trace()) [[likely]]
      return;
    span.with(member == any_source ? Trace::anybody : p2p.comm_->job_rank(member));
    span.moves(bytes);
  }
  // What has come.
  const MessageInfo& about(const PointToPoint& p2p, const MessageInfo& info) const {
    about(p2p, info.source, info.bytes);
    return info;
  }
};

inline bool tells_of_failure(const Error& error) {
  return error.status == Status::PeerLost || error.status == Status::PeerFailed;
}

template <class Ready>
bool PointToPoint::ask(const char* op, int peer, Ready ready) {
  const auto progressed = [&] {
    advance();
    return ready();
  };
  try {
    if (progressed()) return true;
    raise_if_damaged();
    return comm_->glance(progressed, [&](int member) { return !needed(peer, member); });
  } catch (Error& error) {
    error.during(op, calls_, "asking");
    if (tells_of_failure(error)) comm_->end(error);  // as where a call waits
    throw;
  }
}

// A request that does not outlive its call: it leaves every queue with it, however the call ends. One that is lent stays.
struct PointToPoint::OwnRequest {
  PointToPoint& p2p;
  Request& request;
  ~OwnRequest() {
    if (request.state != Request::State::claimed) p2p.forget(request);
  }
};

template <class Done, class GiveUp>
void PointToPoint::complete(const Frame& frame, const char* op, int peer, double timeout, Done done,
                            GiveUp give_up) {
  const LongWait long_wait;
  uint64_t number = calls_ - 1;
  comm_->operate(frame.hold, op, number, timeout, [&](Operation& operation) {
    operation.phase("waiting");
    const auto not_needed = [&](int member) { return !needed(peer, member); };
    const auto ready = [&] {
      advance();
      return done() || damaged_.has_value();
    };
    // Giving up changes what the peer believes. Half done, nobody could go on from there.
    const auto call_off = [&] {
      try {
        raise_if_damaged();
        return give_up();
      } catch (...) {
        operation.publish();
        throw;
      }
    };
    bool came = false;
    try {
      for (const auto& one : channels_) one->publish_credits();
      came = comm_->wait(operation, -1, ready, not_needed);
    } catch (const Error& error) {
      tells_of_failure(error) ? operation.publish() : void(call_off());
      throw;
    } catch (...) {
      call_off();
      throw;
    }
    raise_if_damaged();
    if (came) return;
    switch (call_off()) {
      case GivenUp::done:
        return;
      case GivenUp::lent:
        operation.phase("lent");
        throw Error(Status::Timeout,
                    text("the message has been sent, but rank ", comm_->job_rank(peer),
                         " has borrowed it and not given it back within ", operation.deadline.seconds(),
                         " s; until then the array must stay as it is"),
                    {comm_->job_rank(peer)});
      case GivenUp::sent:
        operation.phase("sent, receiving");
        break;
      case GivenUp::taken_back:
        break;
    }
    std::vector<bool> done_its_part;
    for (int member = 0; member < comm_->size(); ++member)
      done_its_part.push_back(peer == any_source ? member == comm_->rank() : member != peer);
    comm_->raise_timeout(operation, done_its_part, peer);
  });
}

}  // namespace xccl
