// The DLPack data structures (https://dmlc.github.io/dlpack, versions 0.x and 1.x), declared from the published
// specification: how arrays pass between libraries without a copy. Used by bind_dlpack.cpp only.
#pragma once

#include <cstdint>

namespace xccl::python::dl {

struct Device {
  int32_t type;  // 1: CPU
  int32_t id;
};
constexpr int32_t cpu = 1;

struct DataType {
  uint8_t code;  // 0 int, 1 uint, 2 float, 4 bfloat, 6 bool
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: C-contiguous
  uint64_t byte_offset;
};

struct Managed {  // capsule "dltensor"
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ManagedVersioned {  // capsule "dltensor_versioned", since 1.0
  struct {
    uint32_t major, minor;
  } version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;  // bit 0: read-only
  Tensor tensor;
};
constexpr uint64_t read_only = 1;

}  // namespace xccl::python::dl
