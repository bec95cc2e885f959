// A channel: this rank's traffic with one member, in both directions. Records go out in order, as many as the peer has
// room for; buffered messages lie in the eager area until the peer has read them; streams carry matched messages in
// pieces that both ends copy at the same time.
// Used by point_to_point.cpp, which is told what arrives through RecordHandler. Not here: who gets which message.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/copy.hpp"
#include "group/world.hpp"
#include "memory/high_water.hpp"
#include "p2p/request.hpp"
#include "sync/board.hpp"

namespace xccl {

class Channel;

// Where the bytes of a matched message go. In the order in which they were granted.
struct Delivery {
  uint64_t id;
  std::byte* to;
  uint64_t bytes;
  uint64_t moved;
  Request* request;  // null: nobody waits for it any more, and `message` keeps it
  Message* message;
  uint64_t answer = 0;  // number of the record by which the peer is done with the message; 0: it is not yet
};

class RecordHandler {
 public:
  virtual ~RecordHandler() = default;
  virtual void arrived(Channel& channel, const Payload& record) = 0;
  // A streamed message is complete; all bytes of a send are on the stream.
  virtual void moved(Channel& channel, Delivery& delivery) = 0;
  virtual void sent(Request& request) = 0;
};

// The region in which this rank keeps what it sends: address space at the first use, memory as it is used.
class PayloadMemory {
 public:
  PayloadMemory(std::shared_ptr<World> world, const ChannelLayout& layout);
  ~PayloadMemory();
  PayloadMemory(const PayloadMemory&) = delete;
  PayloadMemory& operator=(const PayloadMemory&) = delete;

  const Region& region();
  HighWater piece(uint64_t offset, uint64_t bytes);
  // Whoever takes it frees it, when others have read it.
  std::optional<Region> take() { return std::exchange(region_, std::nullopt); }

 private:
  std::shared_ptr<World> world_;
  uint64_t bytes_;
  std::optional<Region> region_;
};

class Channel {
 public:
  // own_annex, peer_annex: where the communicator's annex lies in this rank's and in the member's segment.
  Channel(const Neighbourhood& group, const ChannelLayout& layout, int member, int job_rank,
          uint64_t own_annex, uint64_t peer_annex, PayloadMemory& payload);

  int member() const { return member_; }
  int job_rank() const { return job_rank_; }
  bool direct() const { return group_.controls[static_cast<size_t>(member_)].direct; }

  // --- Records out ---
  bool has_room() { return backlog_.empty() && ring_has_room(); }  // a record posted now goes out at once
  uint64_t post(const Payload& record);  // at once, or behind those that wait for room; its number, from 1
  bool flushed() const { return backlog_.empty(); }
  List<Request> waiting;  // sends that wait for room, in order
  List<Request> offered;  // announced, and not yet answered
  uint64_t next_id() { return ++last_id_; }

  // --- Records in ---
  // Is there anything to do here? Cheap: asked of every channel in every wait.
  bool quiet() const {
    return !has_record() && deliveries_.empty() && streaming_.empty() && backlog_.empty() &&
           waiting.empty() && settling.empty() && !held && !has_ahead();
  }
  bool has_record() const {
    // seq_cst: acquires the record, and is step B of doorbell.hpp.
    return ring_[drained_ % layout_.ring_records].seq.load(std::memory_order_seq_cst) == drained_ + 1;
  }
  void drain(RecordHandler& handler);
  // Tells the peer all that has been held back so that it need not be told one by one.
  void publish_credits();

  // --- Buffered messages ---
  bool may_buffer();  // not too many are unmatched
  void count_buffered() { ++buffered_; }
  void count_matched();
  std::optional<uint64_t> take_eager(uint64_t bytes);  // a position, if there is room
  void put_eager(uint64_t position, const void* data, uint64_t bytes) {
    copy_out_(eager_->base() + position % layout_.eager_bytes, data, bytes);
  }
  uint64_t open_segment(uint64_t position, uint64_t bytes);  // the peer's; checks what it says
  void free_segment(uint64_t segment);
  uint64_t eager_offset(uint64_t position) const {  // in the peer's payload region
    return layout_.eager(self()) + position % layout_.eager_bytes;
  }
  // The peer has read all that lies here for it, buffered or on the stream, as far as it has told.
  bool payload_is_read() const;

  // --- Streams ---
  // Has the peer said where its stream lies? This rank says so once.
  bool can_stream() const { return peer_payload_.has_value(); }
  void tell_payload();
  void stream_out(Request& request);
  // Copies a piece of the next offer to where it will be streamed. The peer does not see it before it has granted.
  void copy_ahead();
  void expect(const Delivery& delivery) { deliveries_.push_back(delivery); }
  void pump_out(RecordHandler& handler);
  void pump_in(RecordHandler& handler);
  uint64_t streamed() const { return produced_ + consumed_; }  // bytes, both ways
  void replace(Request& gone, Request& by);                    // in the queue of streams
  Delivery* delivery_of(const Request& request);
  Delivery* delivery_of(const Message& message);
  std::optional<Delivery> cancel_delivery(uint64_t id);  // a stream that will not come
  void forget(const Request& request);
  bool all_sent() const {
    return waiting.empty() && offered.empty() && streaming_.empty() && backlog_.empty();
  }
  // Takes every request out of every queue.
  template <class Fail>
  void abandon(Fail fail) {
    for (List<Request>* list : {&waiting, &offered})
      while (Request* request = list->front()) {
        list->remove(*request);
        fail(*request);
      }
    for (Request* request : std::exchange(streaming_, {})) fail(*request);
    for (const Delivery& delivery : std::exchange(deliveries_, {}))
      if (delivery.request) fail(*delivery.request);
    for (const Delivery& delivery : std::exchange(settling, {}))
      if (delivery.request) fail(*delivery.request);
  }

  // --- Taking offers back (see docs/architecture.md) ---
  void announce_withdrawal();
  void count_verdict() { ++verdicts_; }
  // A peer that closes wants back all that it has announced, once, and gives no verdict on that. True when that is all
  // there is in doubt: then an answer that it had read before it closed stands, any other came too late.
  bool only_close_is_in_doubt() const {
    return words_->withdrawals.load(std::memory_order_seq_cst) == verdicts_ + 1;
  }
  bool peer_has_read(uint64_t record) const {
    // relaxed: it was told before the close, which has been seen by an acquiring load.
    return words_->drained.load(std::memory_order_relaxed) >= record;
  }
  // Where no verdicts will come any more: all that was wanted back has been taken back.
  void assume_verdicts() { verdicts_ = words_->withdrawals.load(std::memory_order_seq_cst); }
  // The peer has wanted an offer back, and we do not know yet which, or whether in time.
  bool in_doubt() const { return words_->withdrawals.load(std::memory_order_seq_cst) != verdicts_; }
  std::vector<Delivery> settling;  // pulled, but the peer may have taken the message back
  bool held = false;               // messages were not matched because of a doubt
  // Is there anything that a doubt keeps waiting?
  bool unsettled() const { return held || !settling.empty() || !deliveries_.empty(); }

  // Memory of the peer, attached when first needed: what it sends from; and where its arrays lie.
  const RemoteRegion& peer_payload(const RegionKey& key);
  const RemoteRegion& region(const RegionKey& key);
  // A piece of a message of `message_bytes`.
  void read(const RemoteRegion& region, uint64_t offset, std::byte* to, uint64_t bytes,
            uint64_t message_bytes);

 private:
  int self() const { return group_.self; }
  bool ring_has_room();
  bool has_ahead() const;
  uint64_t put_piece(const Request& request, uint64_t moved, uint64_t position);
  void publish(Request& request, uint64_t bytes);
  void put(const Payload& record);
  void tell(uint64_t offset_in_words, uint64_t value);
  [[noreturn]] void damaged(const char* what) const;

  const Neighbourhood& group_;
  const ChannelLayout layout_;
  const int member_, job_rank_;
  PayloadMemory& payload_;
  Record* ring_;                     // own: the peer writes
  ChannelWords* words_;              // own: the peer writes
  uint64_t peer_ring_, peer_words_;  // offsets in the peer's segment, where this rank writes

  uint64_t posted_ = 0, drained_there_ = 0;
  std::vector<Payload> outgoing_;  // staged path: what puts read from until they are complete
  std::deque<Payload> backlog_;
  uint64_t drained_ = 0, drained_told_ = 0;
  uint64_t last_id_ = 0;

  uint64_t buffered_ = 0, matched_there_ = 0, matched_ = 0, matched_told_ = 0;
  std::optional<HighWater> eager_, stream_;
  uint64_t eager_end_ = 0, eager_freed_there_ = 0;
  struct Segment {
    uint64_t end;
    bool free;
  };
  std::deque<Segment> segments_;
  uint64_t first_segment_ = 0, segment_end_ = 0, eager_freed_ = 0, eager_freed_told_ = 0;

  LearningCopy copy_out_{2048};  // into lines that the peer has read

  std::deque<Request*> streaming_;
  std::deque<Delivery> deliveries_;
  uint64_t produced_ = 0, consumed_there_ = 0, consumed_ = 0;
  uint64_t ahead_of_ = 0, ahead_ = 0;  // the offer of which there are bytes behind `produced_`, and how many

  uint64_t withdrawals_ = 0, verdicts_ = 0;
  bool payload_told_ = false;
  std::optional<RemoteRegion> peer_payload_;
  struct Attached {
    RegionKey key;
    RemoteRegion region;
  };
  std::vector<Attached> attached_;  // the last used first
};

}  // namespace xccl
