// The communicator as Python's Communicator (xccl/communicator.py) uses it; its collectives are in bind_collective.cpp.
#include "collective/barrier.hpp"
#include "collective/split.hpp"
#include "group/shrink.hpp"
#include "p2p/point_to_point.hpp"
#include "python/support.hpp"

namespace xccl::python {
namespace {

// An array of the application area; keeps the rank's memory alive, also after close().
struct HeapBlock {
  std::shared_ptr<World> world;
  std::byte* memory;
  HeapBlock(std::shared_ptr<World> owner, uint64_t bytes)
      : world(std::move(owner)), memory(world->heap().allocate(bytes)) {}
  ~HeapBlock() {
    // In a forked child this is the parent's memory: freeing it would empty the parent's array.
    if (!world->forked()) world->heap().free(memory);
  }
  HeapBlock(const HeapBlock&) = delete;
  HeapBlock& operator=(const HeapBlock&) = delete;
};

std::shared_ptr<Communicator> init(const std::string& job, int rank, int size, bool numbered,
                                   const std::optional<std::string>& provider,
                                   const std::optional<double>& timeout,
                                   const std::optional<double>& startup_timeout,
                                   const std::optional<bool>& progress_thread) {
  Config config = Config::from_environment();
  if (provider) config.provider = *provider;
  if (timeout) config.timeout = *timeout;
  if (startup_timeout) config.startup_timeout = *startup_timeout;
  if (progress_thread) config.progress_thread = *progress_thread;
  const Blocking blocking;
  return Communicator::init({job, rank, size, numbered}, config, PointToPoint::annex_bytes);
}

py::array empty(Communicator& comm, std::vector<py::ssize_t> shape, const py::dtype& dtype) {
  comm.require_usable();
  uint64_t bytes = static_cast<uint64_t>(dtype.itemsize());
  for (const py::ssize_t dim : shape) {
    if (dim < 0) fail(Status::InvalidArgument, "shape has a negative dimension");
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes) || bytes > uint64_t{1} << 60)
      fail(Status::OutOfMemory, "an array that large cannot be had");
  }
  auto block = std::make_shared<HeapBlock>(comm.share_world(), bytes);
  return array_over(block->memory, dtype, std::move(shape), block);
}

}  // namespace

void bind_communicator(py::module_& m) {
  py::class_<Communicator, std::shared_ptr<Communicator>>(m, "Communicator")
      .def_static("init", &init, py::arg("job"), py::arg("rank"), py::arg("size"), py::arg("numbered"),
                  py::arg("provider"), py::arg("timeout"), py::arg("startup_timeout"),
                  py::arg("progress_thread"))
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def_property_readonly("timeout", &Communicator::timeout)
      .def_property_readonly("closed", &Communicator::closed)
      .def_property_readonly("provider", [](Communicator& comm) { return comm.world().provider().name(); })
      .def_property_readonly("direct", [](Communicator& comm) { return comm.world().config().direct; })
      .def_property_readonly("job", [](Communicator& comm) { return comm.world().spec().job; })
      .def_property_readonly("committed_bytes",
                             [](Communicator& comm) { return comm.world().provider().committed_bytes(); })
      .def("wait_stats", [](Communicator& comm) { return wait_matrix(comm.wait_stats(), comm.size()); })
      .def("reset_wait_stats", &Communicator::reset_wait_stats)
      .def("require_usable", &Communicator::require_usable)
      .def("empty", &empty, py::arg("shape"), py::arg("dtype"))
      .def(
          "barrier",
          [](Communicator& comm, double timeout) {
            const Blocking blocking;
            barrier(comm, timeout);
          },
          py::arg("timeout"))
      .def(
          "split",
          [](const std::shared_ptr<Communicator>& comm, int color, int key, double timeout) {
            const Blocking blocking;
            return split(comm, color, key, timeout);
          },
          py::arg("color"), py::arg("key"), py::arg("timeout"))
      .def(
          "shrink",
          [](const std::shared_ptr<Communicator>& comm, double timeout) {
            const Blocking blocking;
            return shrink(comm, timeout);
          },
          py::arg("timeout"))
      .def("abort", &Communicator::abort, py::arg("reason"))
      .def("close", [](Communicator& comm) {
        const Blocking blocking;
        comm.close();
      });
}

}  // namespace xccl::python
