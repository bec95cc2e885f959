// Which rank this process is, for xccl/launch/environment.py. Variables and job names are bytes here: they need not be
// text in any encoding.
#include "group/launch_environment.hpp"
#include "python/support.hpp"

namespace xccl::python {

void bind_launch(py::module_& m) {
  m.def(
      "detect_launch",
      [](const Environment& environment) -> py::object {
        const std::optional<LaunchInfo> info = detect_launch(environment);
        if (!info) return py::none();
        return py::make_tuple(info->rank, info->size, info->local_rank, info->local_size,
                              py::bytes(info->job), info->launcher);
      },
      py::arg("environ"));
  m.def(
      "require_single_host",
      [](const std::string& launcher, int local_size, int size) {
        LaunchInfo info;
        info.launcher = launcher;
        info.local_size = local_size;
        info.size = size;
        require_single_host(info);
      },
      py::arg("launcher"), py::arg("local_size"), py::arg("size"));
}

}  // namespace xccl::python
