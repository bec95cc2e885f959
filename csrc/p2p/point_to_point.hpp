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

  // Returns when `data` may be reused. Timeout: the message was not sent and the call may be repeated.
  void send(const void* data, uint64_t bytes, int dst, int tag, double timeout = -1);
  // src, tag: any_source, any_tag match all. Truncated, naming both sizes, leaves the message for a larger receive;
  // Timeout takes nothing.
  MessageInfo recv(void* data, uint64_t capacity, int src, int tag, double timeout = -1);
  // The array must stay as it is until the request has finished; `keepalive` is held until then.
  std::shared_ptr<Request> isend(const void* data, uint64_t bytes, int dst, int tag,
                                 std::shared_ptr<void> keepalive = nullptr);
  std::shared_ptr<Request> irecv(void* data, uint64_t capacity, int src, int tag,
                                 std::shared_ptr<void> keepalive = nullptr);
  MessageInfo sendrecv(const void* data, uint64_t bytes, int dst, int send_tag, void* into, uint64_t capacity,
                       int src, int recv_tag, double timeout = -1);

  // Waits for a request and tells its message; raises its error. Timeout leaves the request as it is.
  MessageInfo wait(Request& request, double timeout = -1);
  // Whether it has finished; raises its error.
  bool test(Request& request);
  // The first message that such a receive would get, without taking it.
  MessageInfo probe(int src, int tag, double timeout = -1);
  std::optional<MessageInfo> iprobe(int src, int tag);
  // Borrows a message where it lies. Drop the view, or set `released`, and the sender may go on.
  std::shared_ptr<View> recv_view(int src, int tag, double timeout = -1);

  // Not collective: waits, within the deadline, until what this rank has sent is where it need not help any more.
  void close();

  // --- Engine ---
  void advance() noexcept override;
  void try_advance() noexcept override;
  bool unfinished() const noexcept override { return busy_.load(std::memory_order_relaxed) > 0; }

 private:
  void check_member(const char* name, int member) const;
  void check_tag(int tag, bool wildcard) const;

  // The frame of every call: a quick try, a short spin, then a wait that others can see.
  template <class Done>
  void complete(const char* op, int peer, double timeout, Done done);
  bool spin(Request& request);

  // --- sending ---
  void submit(Request& request);
  bool start(Request& request);
  bool start_inlined(Channel& channel, Request& request);
  bool start_eager(Channel& channel, Request& request);
  void offer(Channel& channel, Request& request);
  // The deadline of a blocking send has passed. True if it counts as sent nevertheless.
  bool give_up_send(Request& request);

  // --- receiving ---
  void post(Request& request);
  bool match_posted(Message& message);
  void deliver(Request& request, Message& message);
  void pull(Request& request, Message& message);
  void lend(Request& request, Message& message);
  void give_up_receive(Request& request);
  void repost(Request& request);
  const RemoteRegion& area(Channel& channel, const Payload& record);

  // --- RecordHandler: what arrives on a channel ---
  void arrived(Channel& channel, const Payload& record) override;
  void moved(Channel& channel, Delivery& delivery) override;
  void sent(Request& request) override { finish(request); }
  void settle(Channel& channel) override;
  void room(Channel& channel) override;

  void advance_channel(Channel& channel);
  void return_views();
  void link(Request& request, std::shared_ptr<Request> self);
  void finish(Request& request);
  void fail(Request& request, Error error);
  void raise_if_damaged();

  std::shared_ptr<Communicator> comm_;
  ChannelLayout layout_;
  uint64_t eager_limit_;
  PayloadMemory payload_;
  std::vector<std::unique_ptr<Channel>> channels_;  // by member
  Matching matching_;
  std::vector<std::shared_ptr<View>> views_;  // lent, and not yet given back
  std::atomic<int64_t> busy_{0};              // requests in a queue, and views
  uint64_t calls_ = 0;                        // of all operations here, for messages
  std::optional<Error> damaged_;              // what went wrong inside advance()
  bool closed_ = false;
};

}  // namespace xccl
