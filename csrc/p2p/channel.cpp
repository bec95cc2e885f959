#include "p2p/channel.hpp"

#include <algorithm>
#include <cstring>

#include "base/machine.hpp"
#include "base/test_point.hpp"

namespace xccl {
namespace {
constexpr uint64_t most_unmatched = 8192;     // buffered messages of a pair
constexpr uint64_t most_drained = 16384;      // records taken at once
constexpr uint64_t stream_chunk = 16 * 1024;  // copied before the peer is told
constexpr uint64_t stream_step = 256 * 1024;  // memory taken at once for short streams
constexpr uint64_t most_ahead = 64 * 1024;    // copied until a grant comes, also from afar
constexpr size_t regions_remembered = 8;
}  // namespace

PayloadMemory::PayloadMemory(std::shared_ptr<World> world, const ChannelLayout& layout)
    : world_(std::move(world)), bytes_(layout.payload_bytes()) {}

PayloadMemory::~PayloadMemory() {
  if (region_ && !world_->forked()) world_->provider().free(*region_);
}

const Region& PayloadMemory::region() {
  if (!region_) region_ = world_->provider().allocate(bytes_);
  return *region_;
}

HighWater PayloadMemory::piece(uint64_t offset, uint64_t bytes) {
  return HighWater(world_->provider(), region(), offset, bytes);
}

Channel::Channel(const Neighbourhood& group, const ChannelLayout& layout, int member, int job_rank,
                 uint64_t own_annex, uint64_t peer_annex, PayloadMemory& payload)
    : group_(group),
      layout_(layout),
      member_(member),
      job_rank_(job_rank),
      payload_(payload),
      ring_(reinterpret_cast<Record*>(group.own + own_annex + layout.ring(member))),
      words_(reinterpret_cast<ChannelWords*>(group.own + own_annex + layout.words(member))),
      peer_ring_(peer_annex + layout.ring(group.self)),
      peer_words_(peer_annex + layout.words(group.self)) {}

void Channel::damaged(const char* what) const {
  fail(Status::Failure, "rank ", job_rank_, "'s ", what, " is damaged");
}

void Channel::tell(uint64_t offset_in_words, uint64_t value) {
  const RemoteRegion& control = group_.controls[static_cast<size_t>(member_)];
  if (!control.direct) return group_.signal(member_, peer_words_ + offset_in_words, value);
  auto* word = reinterpret_cast<std::atomic<uint64_t>*>(control.direct + peer_words_ + offset_in_words);
  // seq_cst: publishes what was copied before (release), frees what was read before, and is step C of doorbell.hpp.
  word->store(value, std::memory_order_seq_cst);
  group_.ring(member_);
}

// --- Records -----------------------------------------------------------------------------------------

bool Channel::ring_has_room() {
  if (posted_ - drained_there_ < layout_.ring_records) return true;
  // seq_cst: the peer has read the places before it said so (acquire), and step B of doorbell.hpp.
  drained_there_ = words_->drained.load(std::memory_order_seq_cst);
  return posted_ - drained_there_ < layout_.ring_records;
}

uint64_t Channel::post(const Payload& record) {
  if (has_room())
    put(record);
  else
    backlog_.push_back(record);
  return posted_ + backlog_.size();
}

void Channel::put(const Payload& payload) {
  const RemoteRegion& control = group_.controls[static_cast<size_t>(member_)];
  const uint64_t slot = posted_ % layout_.ring_records, offset = peer_ring_ + slot * sizeof(Record);
  if (control.direct) {
    auto& record = *reinterpret_cast<Record*>(control.direct + offset);
    record.payload = payload;
    XCCL_TEST_POINT("p2p.posting");
    // seq_cst: publishes the payload and what it speaks of (release), and is step C of doorbell.hpp.
    record.seq.store(++posted_, std::memory_order_seq_cst);
    return group_.ring(member_);
  }
  if (outgoing_.empty()) outgoing_.resize(layout_.ring_records);
  if (slot == 0) group_.provider->quiet();  // before what earlier puts read from is overwritten
  outgoing_[slot] = payload;
  const Transfer transfer{outgoing_[slot].data(), offset + offsetof(Record, payload), sizeof(Payload)};
  group_.provider->put(control, &transfer, 1);
  group_.signal(member_, offset + offsetof(Record, seq), ++posted_);
}

// A peer that posts without end must not keep this rank from looking at its deadline.
void Channel::drain(RecordHandler& handler) {
  for (uint64_t left = most_drained; left > 0 && has_record(); --left) {
    const Payload record = ring_[drained_ % layout_.ring_records].payload;
    ++drained_;
    if (drained_ - drained_told_ >= layout_.ring_records / 4)
      tell(offsetof(ChannelWords, drained), drained_told_ = drained_);
    handler.arrived(*this, record);
  }
  for (; !backlog_.empty() && ring_has_room(); backlog_.pop_front()) put(backlog_.front());
}

void Channel::publish_credits() {
  if (drained_told_ != drained_) tell(offsetof(ChannelWords, drained), drained_told_ = drained_);
  if (matched_told_ != matched_) tell(offsetof(ChannelWords, matched), matched_told_ = matched_);
  if (eager_freed_told_ != eager_freed_)
    tell(offsetof(ChannelWords, eager_freed), eager_freed_told_ = eager_freed_);
}

// --- Buffered messages -------------------------------------------------------------------------------

bool Channel::may_buffer() {
  if (buffered_ - matched_there_ < most_unmatched) return true;
  matched_there_ =
      words_->matched.load(std::memory_order_relaxed);  // a number, nothing else is read because of it
  return buffered_ - matched_there_ < most_unmatched;
}

void Channel::count_matched() {
  ++matched_;
  if (matched_ - matched_told_ >= most_unmatched / 4)
    tell(offsetof(ChannelWords, matched), matched_told_ = matched_);
}

std::optional<uint64_t> Channel::take_eager(uint64_t bytes) {
  const uint64_t size = round_up(bytes, cache_line), area = layout_.eager_bytes;
  uint64_t position = eager_end_;
  // A message lies in one piece: the rest of the area is passed over when it does not fit there.
  if (position % area + size > area) position = round_up(position, area);
  if (position + size - eager_freed_there_ > area) {
    // acquire: the peer has read what lay there before it said so.
    eager_freed_there_ = words_->eager_freed.load(std::memory_order_acquire);
    if (position + size - eager_freed_there_ > area) return std::nullopt;
  }
  if (!eager_) eager_ = payload_.piece(layout_.eager(member_), area);
  eager_->require(position % area + size);
  eager_end_ = position + size;
  return position;
}

bool Channel::payload_is_read() const {
  return words_->eager_freed.load(std::memory_order_acquire) == eager_end_ &&
         words_->consumed.load(std::memory_order_acquire) == produced_;
}

uint64_t Channel::open_segment(uint64_t position, uint64_t bytes) {
  const uint64_t area = layout_.eager_bytes;
  if (bytes > area || position % cache_line != 0) damaged("message");
  const uint64_t size = round_up(bytes, cache_line);
  if (position < segment_end_ || position % area + size > area || position + size - eager_freed_ > area)
    damaged("message");
  segment_end_ = position + size;
  segments_.push_back({segment_end_, false});
  return first_segment_ + segments_.size() - 1;
}

void Channel::free_segment(uint64_t segment) {
  segments_[static_cast<size_t>(segment - first_segment_)].free = true;
  for (; !segments_.empty() && segments_.front().free; segments_.pop_front(), ++first_segment_)
    eager_freed_ = segments_.front().end;
  if (eager_freed_ - eager_freed_told_ >= layout_.eager_bytes / 4)
    tell(offsetof(ChannelWords, eager_freed), eager_freed_told_ = eager_freed_);
}

// --- Streams -----------------------------------------------------------------------------------------

void Channel::tell_payload() {
  if (std::exchange(payload_told_, true)) return;
  const RegionKey key = payload_.region().key;
  post({p2p_record::make_head(p2p_record::memory, 0), 0, 0, key.words[0], key.words[1]});
}

// The piece of the request behind its first `moved` bytes, to `position` of the stream; 0 if there is no room.
uint64_t Channel::put_piece(const Request& request, uint64_t moved, uint64_t position) {
  const uint64_t area = layout_.stream_bytes, left = request.bytes - moved;
  if (!stream_) stream_ = payload_.piece(layout_.stream(member_), area);
  if (area - (position - consumed_there_) < std::min(left, stream_chunk))
    // seq_cst: the peer has read what lay there (acquire), and step B of doorbell.hpp.
    consumed_there_ = words_->consumed.load(std::memory_order_seq_cst);
  const uint64_t at = position % area, room = area - (position - consumed_there_);
  const uint64_t bytes = std::min({left, room, area - at, stream_chunk});
  if (bytes == 0) return 0;
  stream_->require(left > stream_step ? area : std::min(area, round_up(at + bytes, stream_step)));
  copy_out_(stream_->base() + at, request.data + moved, bytes);
  return bytes;
}

bool Channel::has_ahead() const {
  const Request* next = offered.front();
  return next && next->streams && next->state == Request::State::offered && streaming_.empty() &&
         (next->id != ahead_of_ || ahead_ < std::min(next->bytes, most_ahead));
}

void Channel::copy_ahead() {
  if (!has_ahead()) return;
  const Request& next = *offered.front();
  if (next.id != ahead_of_) ahead_of_ = next.id, ahead_ = 0;
  ahead_ += put_piece(next, ahead_, produced_ + ahead_);
  XCCL_TEST_POINT("p2p.ahead");
}

void Channel::stream_out(Request& request) {
  streaming_.push_back(&request);
  // What lies ahead of another request is in this one's way. (An id is never used again.)
  if (std::exchange(ahead_of_, 0) == request.id) publish(request, ahead_);
}

// The next bytes of the request are there.
void Channel::publish(Request& request, uint64_t bytes) {
  request.moved += bytes;
  produced_ += bytes;
  if (request.moved == request.bytes) produced_ = round_up(produced_, cache_line);
  tell(offsetof(ChannelWords, produced), produced_);
}

void Channel::pump_out(RecordHandler& handler) {
  while (!streaming_.empty()) {
    Request& request = *streaming_.front();
    if (request.moved < request.bytes) {
      const uint64_t bytes = put_piece(request, request.moved, produced_);
      if (bytes == 0) return;
      XCCL_TEST_POINT("p2p.chunk");
      publish(request, bytes);
      if (request.moved < request.bytes) continue;
    }
    streaming_.pop_front();
    handler.sent(request);
  }
}

void Channel::pump_in(RecordHandler& handler) {
  const uint64_t area = layout_.stream_bytes;
  while (!deliveries_.empty()) {
    Delivery& delivery = deliveries_.front();
    // seq_cst: the bytes are there (acquire), and step B of doorbell.hpp.
    const uint64_t there = words_->produced.load(std::memory_order_seq_cst) - consumed_;
    // They are another message's if the sender has wanted this one back, which it did before. And where there are none
    // to come, the grant must have gone out before: as in PointToPoint::pull.
    if ((delivery.bytes == 0 && !flushed()) || in_doubt()) return;
    if (there > area) damaged("stream");
    if (delivery.moved < delivery.bytes) {
      const uint64_t at = consumed_ % area;
      const uint64_t bytes = std::min({there, delivery.bytes - delivery.moved, area - at});
      if (bytes == 0) return;
      read(*peer_payload_, layout_.stream(self()) + at, delivery.to + delivery.moved, bytes, delivery.bytes);
      XCCL_TEST_POINT("p2p.taken");
      consumed_ += bytes;
      delivery.moved += bytes;
    }
    const bool complete = delivery.moved == delivery.bytes;
    if (complete) consumed_ = round_up(consumed_, cache_line);
    tell(offsetof(ChannelWords, consumed), consumed_);
    if (!complete) continue;
    Delivery finished = delivery;
    deliveries_.pop_front();
    handler.moved(*this, finished);
  }
}

void Channel::replace(Request& gone, Request& by) {
  std::replace(streaming_.begin(), streaming_.end(), &gone, &by);
}

Delivery* Channel::delivery_of(const Request& request) {
  for (Delivery& delivery : deliveries_)
    if (delivery.request == &request) return &delivery;
  for (Delivery& delivery : settling)
    if (delivery.request == &request) return &delivery;
  return nullptr;
}

Delivery* Channel::delivery_of(const Message& message) {
  for (Delivery& delivery : deliveries_)
    if (delivery.message == &message) return &delivery;
  for (Delivery& delivery : settling)
    if (delivery.message == &message) return &delivery;
  return nullptr;
}

std::optional<Delivery> Channel::cancel_delivery(uint64_t id) {
  const auto cancel = [id](auto& queue) -> std::optional<Delivery> {
    for (auto entry = queue.begin(); entry != queue.end(); ++entry)
      if (entry->id == id) {
        const Delivery gone = *entry;
        queue.erase(entry);
        return gone;
      }
    return std::nullopt;
  };
  auto gone = cancel(deliveries_);
  return gone ? gone : cancel(settling);
}

void Channel::forget(const Request& request) {
  std::erase(streaming_, &request);
  const auto is_its = [&](const Delivery& delivery) { return delivery.request == &request; };
  std::erase_if(deliveries_, is_its);
  std::erase_if(settling, is_its);
}

void Channel::announce_withdrawal() {
  tell(offsetof(ChannelWords, withdrawals), ++withdrawals_);
  // What the caller does to the array afterwards stays after it: an acquiring read-modify-write after a seq_cst store.
  std::atomic_ref<uint64_t>(withdrawals_).fetch_add(0, std::memory_order_acq_rel);
}

// --- Memory of the peer ------------------------------------------------------------------------------

const RemoteRegion& Channel::peer_payload(const RegionKey& key) {
  if (!peer_payload_) {
    peer_payload_ = group_.provider->attach(job_rank_, key);
    if (peer_payload_->bytes < layout_.payload_bytes()) damaged("payload region");
  }
  return *peer_payload_;
}

const RemoteRegion& Channel::region(const RegionKey& key) {
  const auto same = [&](const Attached& one) {
    return one.key.words[0] == key.words[0] && one.key.words[1] == key.words[1];
  };
  const auto found = std::find_if(attached_.begin(), attached_.end(), same);
  if (found != attached_.end()) {
    std::rotate(attached_.begin(), found, found + 1);
    return attached_.front().region;
  }
  if (attached_.size() >= regions_remembered) attached_.pop_back();
  attached_.insert(attached_.begin(), {key, group_.provider->attach(job_rank_, key)});
  return attached_.front().region;
}

void Channel::read(const RemoteRegion& region, uint64_t offset, std::byte* to, uint64_t bytes,
                   uint64_t message_bytes) {
  if (offset > region.bytes || bytes > region.bytes - offset) damaged("record");
  if (bytes == 0) return;
  if (region.direct) {
    // Source and result together fill the caches: the result would only push out what is still to be read.
    const bool past = message_bytes >= shared_cache_bytes() / 2;
    past ? copy_past_caches(to, region.direct + offset, bytes)
         : static_cast<void>(std::memcpy(to, region.direct + offset, bytes));
    return;
  }
  const Transfer transfer{to, offset, bytes};
  group_.provider->get(region, &transfer, 1);
  group_.provider->quiet();
}

}  // namespace xccl
