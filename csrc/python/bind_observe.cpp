// What `python -m xccl ps` reads of other processes' ranks (group/observe.hpp), and the clock in which they tell times.
#include "group/observe.hpp"
#include "python/support.hpp"

namespace xccl::python {
namespace {

constexpr double seconds = 1e-9;

// How long ago, or none for never. Times are other processes' words: one in the future is now.
py::object ago(uint64_t since_ns, uint64_t now) {
  if (since_ns == 0) return py::none();
  return py::float_(now > since_ns ? static_cast<double>(now - since_ns) * seconds : 0.0);
}

const char* state_name(RankState state) {
  switch (state) {
    case RankState::running:
      return "running";
    case RankState::closed:
      return "closed";
    case RankState::failed:
      return "failed";
  }
  return "unknown";
}

py::object observed(int fd) {
  const std::optional<Observation> seen = observe(fd);
  if (!seen) return py::none();
  py::dict out;
  out["layout_version"] = seen->version;
  if (seen->version != layout_version) return out;
  const uint64_t now = now_ns();
  out["rank"] = seen->rank;
  out["size"] = seen->size;
  out["pid"] = seen->pid;
  out["meeting"] = seen->meeting;
  out["job"] = py::bytes(seen->job);
  out["state"] = state_name(seen->state);
  out["op"] = py::bytes(seen->op);
  out["seq"] = seen->seq;
  out["members"] = seen->members;
  out["op_seconds"] = ago(seen->since_ns, now);
  out["phase"] = py::bytes(seen->phase);
  out["wait_seconds"] = ago(seen->wait_since_ns, now);
  out["waits_for"] = seen->waits_for;
  out["failed"] = seen->failed;
  out["dead"] = seen->dead;
  out["array_bytes"] = seen->array_bytes;
  out["file_bytes"] = seen->file_bytes;
  out["waited"] = wait_matrix(seen->waited, 1);
  return out;
}

}  // namespace

py::tuple wait_matrix(const std::vector<WaitCount>& waits, py::ssize_t rows) {
  const auto columns = static_cast<py::ssize_t>(waits.size()) / rows;
  py::array_t<int64_t> count({rows, columns});
  py::array_t<double> total({rows, columns}), longest({rows, columns});
  for (size_t i = 0; i < waits.size(); ++i) {
    count.mutable_data()[i] = static_cast<int64_t>(waits[i].count);
    total.mutable_data()[i] = static_cast<double>(waits[i].total_ns) * seconds;
    longest.mutable_data()[i] = static_cast<double>(waits[i].longest_ns) * seconds;
  }
  return py::make_tuple(count, total, longest);
}

void bind_observe(py::module_& m) {
  m.attr("layout_version") = layout_version;
  m.def("observe", &observed, py::arg("fd"));
}

}  // namespace xccl::python
