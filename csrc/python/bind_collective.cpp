// The collectives as xccl/collectives.py uses them: methods of the native Communicator, which bind_communicator.cpp makes.
#include <optional>
#include <utility>

#include "collective/all_gather.hpp"
#include "collective/all_reduce.hpp"
#include "collective/all_to_all.hpp"
#include "collective/broadcast.hpp"
#include "collective/reduce_scatter.hpp"
#include "python/support.hpp"

namespace xccl::python {
namespace {

using Counts = py::array_t<uint64_t>;

ElementType element_type(const std::string& name) {
  for (const ElementType type :
       {ElementType::float32, ElementType::float16, ElementType::bfloat16, ElementType::int64})
    if (name == element_type_name(type)) return type;
  fail(Status::InvalidArgument, "dtype ", name, ": expected float32, float16, bfloat16 or int64");
}

ReduceOp reduce_op(const std::string& name) {
  for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max})
    if (name == reduce_op_name(op)) return op;
  fail(Status::InvalidArgument, "op=\"", name, "\": expected \"sum\" or \"max\"");
}

uint64_t bytes_of(const py::array& array) { return static_cast<uint64_t>(array.nbytes()); }

uint64_t row_elements(const py::array& rows) {
  uint64_t elements = 1;
  for (py::ssize_t dim = 1; dim < rows.ndim(); ++dim) elements *= static_cast<uint64_t>(rows.shape(dim));
  return elements;
}

uint64_t row_bytes(const py::array& rows) {
  return row_elements(rows) * static_cast<uint64_t>(rows.itemsize());
}

// The arrays have been checked in Python: contiguous, of matching shapes and dtypes, `out` writable.

void gather(Communicator& comm, const py::array& a, py::array& out, double timeout) {
  const void* from = a.data();
  void* to = out.mutable_data();
  const uint64_t bytes = bytes_of(a);
  const Blocking blocking;
  all_gather(comm, from, to, bytes, timeout);
}

void exchange(Communicator& comm, const py::array& a, py::array& out, double timeout) {
  const void* from = a.data();
  void* to = out.mutable_data();
  const uint64_t each = bytes_of(a) / static_cast<uint64_t>(comm.size());
  const Blocking blocking;
  all_to_all(comm, from, to, each, timeout);
}

void cast(Communicator& comm, py::array& a, int root, double timeout) {
  void* data = a.mutable_data();
  const uint64_t bytes = bytes_of(a);
  const Blocking blocking;
  broadcast(comm, data, bytes, root, timeout);
}

void reduce_all(Communicator& comm, const py::array& a, py::array& out, const std::string& dtype,
                const std::string& op, double timeout) {
  const void* from = a.data();
  void* to = out.mutable_data();
  const ElementType type = element_type(dtype);
  const ReduceOp operation = reduce_op(op);
  const auto count = static_cast<uint64_t>(a.size());
  const Blocking blocking;
  all_reduce(comm, from, to, count, type, operation, timeout);
}

void scatter(Communicator& comm, const py::array& a, py::array& out, const std::string& dtype,
             const std::string& op, double timeout) {
  const void* from = a.data();
  void* to = out.mutable_data();
  const ElementType type = element_type(dtype);
  const ReduceOp operation = reduce_op(op);
  const auto each = static_cast<uint64_t>(out.size());
  const Blocking blocking;
  reduce_scatter(comm, from, to, each, type, operation, timeout);
}

// counts: rows for each rank.
void scatter_v(Communicator& comm, const py::array& a, py::array& out, const Counts& counts,
               const std::string& dtype, const std::string& op, double timeout) {
  const void* from = a.data();
  void* to = out.mutable_data();
  const ElementType type = element_type(dtype);
  const ReduceOp operation = reduce_op(op);
  const uint64_t* each = counts.data();
  const uint64_t row = row_elements(a);
  const Blocking blocking;
  reduce_scatter_v(comm, from, to, each, row, type, operation, timeout);
}

// Room in `out` where it is given, else in a new array, which it then holds.
Room room_for(const py::array& rows, std::optional<py::array>& out) {
  if (out) return room_in(out->mutable_data(), static_cast<uint64_t>(out->shape(0)));
  const auto make = [&](uint64_t count) -> void* {
    const py::gil_scoped_acquire gil;
    std::vector<py::ssize_t> shape(rows.shape(), rows.shape() + rows.ndim());
    shape[0] = static_cast<py::ssize_t>(count);
    out = py::array(rows.dtype(), shape);
    return out->mutable_data();
  };
  return {make};
}

// Gives (array, counts); with out=, the array is that, and its first sum(counts) rows are what came.
py::tuple gather_v(Communicator& comm, const py::array& a, std::optional<py::array> out, double timeout) {
  Counts counts(comm.size());
  const Room room = room_for(a, out);
  const void* from = a.data();
  const uint64_t rows = static_cast<uint64_t>(a.shape(0)), bytes = row_bytes(a);
  uint64_t* into = counts.mutable_data();
  {
    const Blocking blocking;
    all_gather_v(comm, from, rows, bytes, room, into, timeout);
  }
  return py::make_tuple(*out, counts);
}

py::tuple exchange_v(Communicator& comm, const py::array& a, const Counts& send_counts,
                     std::optional<py::array> out, double timeout) {
  Counts counts(comm.size());
  const Room room = room_for(a, out);
  const void* from = a.data();
  const uint64_t* send = send_counts.data();
  const uint64_t bytes = row_bytes(a);
  uint64_t* into = counts.mutable_data();
  {
    const Blocking blocking;
    all_to_all_v(comm, from, send, bytes, room, into, timeout);
  }
  return py::make_tuple(*out, counts);
}

}  // namespace

void bind_collective(py::module_& m) {
  auto communicator =
      py::reinterpret_borrow<py::class_<Communicator, std::shared_ptr<Communicator>>>(m.attr("Communicator"));
  communicator.def("all_gather", &gather, py::arg("a"), py::arg("out"), py::arg("timeout"))
      .def("all_gather_v", &gather_v, py::arg("a"), py::arg("out"), py::arg("timeout"))
      .def("all_to_all", &exchange, py::arg("a"), py::arg("out"), py::arg("timeout"))
      .def("all_to_all_v", &exchange_v, py::arg("a"), py::arg("send_counts"), py::arg("out"),
           py::arg("timeout"))
      .def("broadcast", &cast, py::arg("a"), py::arg("root"), py::arg("timeout"))
      .def("all_reduce", &reduce_all, py::arg("a"), py::arg("out"), py::arg("dtype"), py::arg("op"),
           py::arg("timeout"))
      .def("reduce_scatter", &scatter, py::arg("a"), py::arg("out"), py::arg("dtype"), py::arg("op"),
           py::arg("timeout"))
      .def("reduce_scatter_v", &scatter_v, py::arg("a"), py::arg("out"), py::arg("counts"), py::arg("dtype"),
           py::arg("op"), py::arg("timeout"));
}

}  // namespace xccl::python
