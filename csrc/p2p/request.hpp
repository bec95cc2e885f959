// A send or a receive under way, a message that nobody has asked for yet, a borrowed message: the objects that
// matching moves between its queues.
// Made by point_to_point.cpp. Not here: what happens to them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/error.hpp"
#include "p2p/channel_layout.hpp"
#include "p2p/list.hpp"

namespace xccl {

// Memory that is about to be written, so not cleared.
using Bytes = std::unique_ptr<std::byte[]>;

constexpr int any_source = -1, any_tag = -1;

// What a receive tells about its message.
struct MessageInfo {
  int source = any_source;
  int tag = any_tag;
  uint64_t bytes = 0;
};

// The sizes that a view may have: any, exactly one, or multiples of one. A message of another is refused, and stays.
struct ViewSize {
  std::optional<uint64_t> exactly;
  uint64_t multiple_of = 1;

  bool admits(uint64_t bytes) const { return exactly ? bytes == *exactly : bytes % multiple_of == 0; }
};

// A message borrowed where it lies. Readable until it is released.
struct View {
  const std::byte* data = nullptr;
  MessageInfo info;
  std::atomic<bool> released{false};  // by whoever drops it, in any thread; the engine then tells the sender

  // --- for the engine ---
  std::shared_ptr<void> owner;      // mapping of the sender's memory
  Bytes copy;                       // where it cannot be borrowed
  std::optional<uint64_t> segment;  // of an eager message
  std::optional<uint64_t> offer;    // id of a claimed offer
};

struct Request : Linked<Request> {
  enum class Kind { send, receive };
  enum class State {
    idle,     // in no queue
    waiting,  // send: no place for its record yet
    offered,  // send: announced, the receiver has not answered
    claimed,  // send: the receiver holds a view
    posted,   // receive: no message yet
    moving,   // both: matched, the bytes are on their way
  };

  Request(Kind kind, const void* data, uint64_t bytes, int peer, int tag)
      : kind(kind),
        data(const_cast<std::byte*>(static_cast<const std::byte*>(data))),  // only read, of a send
        bytes(bytes),
        peer(peer),
        tag(tag) {}

  const Kind kind;
  State state = State::idle;
  std::byte* data;
  uint64_t bytes;  // of a send; room of a receive
  const int peer;
  const int tag;
  uint64_t order = 0;       // of posting: an earlier receive matches first
  uint64_t arrival = 0;     // of the message that it has met
  uint64_t id = 0;          // of an offer, on its channel
  uint64_t moved = 0;       // bytes streamed so far
  bool streams = false;     // an offer that the receiver will not pull
  bool waited_for = false;  // a send whose call does not return before it is done
  bool wants_view = false;
  ViewSize view_size;
  std::shared_ptr<View> view;
  MessageInfo info;
  std::optional<Error> error;
  bool cancelled = false;  // withdrawn before it was matched; it has finished, with an error
  Bytes rest;              // of a send that was not waited for any longer: what is still to be streamed
  std::shared_ptr<void> keepalive;  // of the array
  std::shared_ptr<Request> self;    // while a queue needs it, if nobody else may

  // Successfully, or with an error. Asked in any thread, and then all of the request and its array may be read.
  bool finished() const { return finished_.load(std::memory_order_acquire); }
  // By whoever makes progress, who leaves it alone from then on. release: for those who ask.
  void set_finished() { finished_.store(true, std::memory_order_release); }

 private:
  std::atomic<bool> finished_{false};
};

// A message that has arrived, or been announced, before a receive asked for it.
struct Message : Linked<Message> {
  int source = 0;
  int tag = 0;
  uint64_t bytes = 0;
  uint64_t arrival = 0;             // earlier ones match first
  Payload record{};                 // as it came
  std::optional<uint64_t> segment;  // of an eager message
  bool kept = false;     // its bytes are, or will be, in `buffer`: a receive gave up while they came
  bool complete = true;  // of a kept one: all bytes are there
  Bytes buffer;

  p2p_record::Kind kind() const { return p2p_record::kind_of(record[p2p_record::head]); }
  bool is_offer() const { return !kept && kind() == p2p_record::offer; }  // its sender may want it back
};

}  // namespace xccl
