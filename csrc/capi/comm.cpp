// Communicators: joining, splitting, what they know, leaving.
#include "capi/config.hpp"
#include "capi/handles.hpp"
#include "collective/split.hpp"
#include "group/shrink.hpp"

namespace xccl::capi {
namespace {

double positive(const char* name, double value) {
  if (!std::isfinite(value) || value <= 0)
    fail(Status::InvalidArgument, name, "=", value,
         ": expected a positive number of seconds, or 0 for the default");
  return value;
}

Config settings(const xccl_comm_config& config) {
  Config out = Config::from_environment();
  if (config.provider) out.provider = config.provider;
  if (config.timeout != 0) out.timeout = positive("config->timeout", config.timeout);
  if (config.startup_timeout != 0)
    out.startup_timeout = positive("config->startup_timeout", config.startup_timeout);
  if (config.progress_thread < -1 || config.progress_thread > 1)
    fail(Status::InvalidArgument, "config->progress_thread is ", config.progress_thread,
         ": expected -1, 0 or 1");
  if (config.progress_thread >= 0) out.progress_thread = config.progress_thread == 1;
  return out;
}

}  // namespace

// Every part is closed, also when one before it complains, or none: that another thread is inside is known at the
// beginning. What is said in the end is the first complaint.
void Comm::close() {
  const Communicator::Hold hold(*communicator, "close");
  std::exception_ptr complaint;
  const auto attempt = [&](auto&& part) {
    try {
      part();
    } catch (...) {
      if (!complaint) complaint = std::current_exception();
    }
  };
  const auto made = [&] {  // not held while they are closed, which may take long
    const std::lock_guard lock(mutex);
    return eps;
  }();
  for (const auto& weak : made)
    if (const auto ep = weak.lock()) attempt([&] { ep->close(hold); });
  attempt([&] { p2p->close(hold); });
  attempt([&] { communicator->close(hold); });
  if (complaint) std::rethrow_exception(complaint);
}

}  // namespace xccl::capi

using namespace xccl;
using namespace xccl::capi;

xccl_status xccl_comm_create(const xccl_comm_config* given, xccl_comm** comm_out) {
  return guarded(__func__, [&] {
    require(comm_out, "comm_out");
    const xccl_comm_config config = given ? take(given, "config", comm_defaults()) : comm_defaults();
    const JobSpec spec = identify(config);
    auto communicator = Communicator::init(spec, settings(config), PointToPoint::annex_bytes);
    *comm_out = new xccl_comm{std::make_shared<Comm>(std::move(communicator))};
  });
}

xccl_status xccl_comm_split(xccl_comm* comm, int color, int key, double timeout, xccl_comm** sub_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require(sub_out, "sub_out");
    auto sub = split(state.communicator, color, key, seconds(timeout));
    *sub_out = sub ? new xccl_comm{std::make_shared<Comm>(std::move(sub))} : nullptr;
  });
}

xccl_status xccl_comm_shrink(xccl_comm* comm, double timeout, xccl_comm** survivors_out) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require(survivors_out, "survivors_out");
    auto survivors = shrink(state.communicator, seconds(timeout));
    *survivors_out = new xccl_comm{std::make_shared<Comm>(std::move(survivors))};
  });
}

int xccl_comm_rank(const xccl_comm* comm) { return comm ? comm->state->communicator->rank() : -1; }
int xccl_comm_size(const xccl_comm* comm) { return comm ? comm->state->communicator->size() : -1; }
double xccl_comm_timeout(const xccl_comm* comm) { return comm ? comm->state->communicator->timeout() : -1; }
int xccl_comm_is_closed(const xccl_comm* comm) { return comm ? comm->state->communicator->closed() : 0; }

const char* xccl_comm_provider(const xccl_comm* comm) {
  return comm ? comm->state->communicator->world().provider().name() : nullptr;
}

const char* xccl_comm_job(const xccl_comm* comm) {
  return comm ? comm->state->communicator->world().spec().job.c_str() : nullptr;
}

uint64_t xccl_comm_committed_bytes(const xccl_comm* comm) {
  return comm ? comm->state->communicator->world().provider().committed_bytes() : 0;
}

xccl_status xccl_comm_wait_stats(xccl_comm* comm, xccl_wait* waits) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require_memory(waits, sizeof *waits, "waits", alignof(xccl_wait));
    for (const WaitCount& one : state.communicator->wait_stats())
      *waits++ = {one.count, static_cast<double>(one.total_ns) * 1e-9,
                  static_cast<double>(one.longest_ns) * 1e-9};
  });
}

xccl_status xccl_comm_reset_wait_stats(xccl_comm* comm) {
  return guarded(__func__, [&] { in(comm).communicator->reset_wait_stats(); });
}

xccl_status xccl_comm_abort(xccl_comm* comm, const char* reason) {
  return guarded(__func__, [&] {
    Comm& state = in(comm);
    require(reason, "reason");
    state.communicator->abort(reason);
  });
}

xccl_status xccl_comm_close(xccl_comm* comm) {
  return guarded(__func__, [&] { in(comm).close(); });
}

void xccl_comm_destroy(xccl_comm* comm) {
  if (!comm) return;
  guarded(__func__, [&] { comm->state->close(); });
  comm->state->blocks.clear();
  delete comm;
}
