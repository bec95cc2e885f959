// Facts for `python -m xccl doctor`: the machine, the providers, the settings, the kernels.
#include "base/config.hpp"
#include "base/machine.hpp"
#include "kernels/kernels.hpp"
#include "memory/providers.hpp"
#include "python/support.hpp"
#include "sync/wait.hpp"

namespace xccl::python {

void bind_machine(py::module_& m) {
  m.def("machine", [] {
    const MemoryHeadroom headroom = memory_headroom();
    py::dict out;
    out["usable_cores"] = usable_cores();
    out["memory_headroom"] = headroom.bytes;
    out["memory_limited_by"] = headroom.limited_by;
    out["physical_memory"] = physical_memory();
    out["huge_pages"] = huge_page_policy();
    out["address_space_limit"] = address_space_limit();
    return out;
  });
  m.def("cache_line_round_trip_ns", &cache_line_round_trip_ns, py::arg("cpu_a"), py::arg("cpu_b"),
        py::call_guard<py::gil_scoped_release>());
  m.def("providers", [] {
    py::list out;
    for (const ProviderEntry& entry : providers()) out.append(py::make_tuple(entry.name, entry.why_not()));
    return out;
  });
  m.def("config", [] {
    py::list out;
    for (const ConfigEntry& entry : config_table())
      out.append(py::make_tuple(entry.name, entry.value, entry.default_value, entry.doc));
    return out;
  });
  m.def("kernels", [] { return select_kernels(Config::from_environment().kernels).name; });
  m.def(
      "wait_policy",
      [](int ranks) {
        const WaitPolicy policy =
            WaitPolicy::choose(ranks, usable_cores(), Config::from_environment().spin_us);
        return py::make_tuple(policy.spin_ns, policy.yield_ns);
      },
      py::arg("ranks"));
}

}  // namespace xccl::python
