// What makes progress inside other calls: a communicator's point-to-point traffic (p2p/) goes on while this rank waits
// in any call, on any communicator of the job, because a peer may wait for it before it comes to that call itself.
// Registered with World; implemented above this layer.
#pragma once

namespace xccl {

class Engine {
 public:
  virtual ~Engine() = default;
  // Does what can be done now without waiting. Never throws: what goes wrong is kept for the call that asks for it.
  virtual void advance() noexcept = 0;
  // The same, unless another thread is inside a call on its communicator: that one advances it.
  virtual void try_advance() noexcept = 0;
  // Has this rank begun something there that needs advancing?
  virtual bool unfinished() const noexcept = 0;
  // Bytes of what is unfinished that have moved so far.
  virtual uint64_t moved() const noexcept = 0;
};

}  // namespace xccl
