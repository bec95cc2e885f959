// What the opaque handles of xccl.h hold. Used by this folder only.
//
// Handles are given back in any order, so each holds what it needs of the others: the state of a communicator lives
// until the last handle that came from it is gone.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "capi/wall.hpp"
#include "group/communicator.hpp"
#include "moe/expert_parallel.hpp"
#include "moe/plan.hpp"
#include "p2p/point_to_point.hpp"

namespace xccl::capi {

// Memory of the application area.
class Block {
 public:
  Block(std::shared_ptr<World> world, uint64_t bytes)
      : world_(std::move(world)), memory_(world_->heap().allocate(bytes)) {}
  ~Block() {
    // In a forked child this is the parent's memory: freeing it would empty the parent's array.
    if (!world_->forked()) world_->heap().free(memory_);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void* memory() const { return memory_; }

 private:
  std::shared_ptr<World> world_;
  std::byte* memory_;
};

// A communicator and what was made on it.
struct Comm {
  explicit Comm(std::shared_ptr<Communicator> made)
      : communicator(std::move(made)), p2p(std::make_unique<PointToPoint>(communicator)) {}

  void close();

  std::shared_ptr<Communicator> communicator;
  std::unique_ptr<PointToPoint> p2p;
  std::mutex mutex;  // of the two below: memory is freed in any thread, and a second thread is refused late
  std::map<void*, std::unique_ptr<Block>> blocks;
  std::vector<std::weak_ptr<ExpertParallel>> eps;
};

}  // namespace xccl::capi

struct xccl_comm {
  std::shared_ptr<xccl::capi::Comm> state;
};

struct xccl_request {
  std::shared_ptr<xccl::capi::Comm> state;
  std::shared_ptr<xccl::Request> request;
};

struct xccl_view {
  std::shared_ptr<xccl::capi::Comm> state;
  std::shared_ptr<xccl::View> view;
};

struct xccl_ep {
  std::shared_ptr<xccl::capi::Comm> state;
  std::shared_ptr<xccl::ExpertParallel> ep;
  std::vector<int> local_experts;
};

struct xccl_routing {
  std::shared_ptr<const xccl::Routing> routing;
};

struct xccl_result {
  std::shared_ptr<xccl::ExpertParallel> ep;
  std::shared_ptr<xccl::Dispatched> dispatched;
  xccl_routing routing;
};

struct xccl_plan {
  std::vector<xccl::PlanLine> lines;
  std::vector<xccl_plan_line> shown;
};

namespace xccl::capi {

inline Comm& in(xccl_comm* comm) {
  require(comm, "comm");
  return *comm->state;
}

inline xccl_message message(const MessageInfo& info) { return {info.source, info.tag, info.bytes}; }

}  // namespace xccl::capi
