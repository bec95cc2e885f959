// The extension module xccl._core. It only calls bind_*.
#include "python/support.hpp"

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native core of XCCL. Use the package xccl; this module is its private part.";
  m.attr("__version__") = XCCL_VERSION;
  xccl::python::bind_errors(m);
  xccl::python::bind_machine(m);
  xccl::python::bind_observe(m);
  xccl::python::bind_dlpack(m);
  xccl::python::bind_launch(m);
  xccl::python::bind_communicator(m);
  xccl::python::bind_hot(m);
  xccl::python::bind_collective(m);
  xccl::python::bind_expert_parallel(m);
}
