// Arrays to and from DLPack, bfloat16 included, which numpy's own exchange does not know.
// xccl.Array.__dlpack__ and xccl.array.as_array call these.
#include <array>
#include <cstring>

#include "python/dlpack.hpp"
#include "python/support.hpp"

namespace xccl::python {
namespace {

constexpr const char* old_name = "dltensor";
constexpr const char* new_name = "dltensor_versioned";

dl::DataType type_of(const py::dtype& dtype) {
  if (dtype.byteorder() == '>') throw py::buffer_error("DLPack has no big-endian dtypes");
  const auto bits = static_cast<uint8_t>(8 * dtype.itemsize());
  if (std::string(py::str(dtype)) == "bfloat16") return {4, 16, 1};
  switch (dtype.kind()) {
    case 'i':
      return {0, bits, 1};
    case 'u':
      return {1, bits, 1};
    case 'f':
      return {2, bits, 1};
    case 'b':
      return {6, 8, 1};
    default:
      fail(Status::InvalidArgument, "dtype ", std::string(py::str(dtype)), " has no DLPack form");
  }
}

py::dtype dtype_of(const dl::DataType& type) {
  const std::string bits = std::to_string(type.bits);
  const bool whole_bytes = type.bits == 8 || type.bits == 16 || type.bits == 32 || type.bits == 64;
  if (type.lanes == 1 && whole_bytes) switch (type.code) {
      case 0:
        return py::dtype("int" + bits);
      case 1:
        return py::dtype("uint" + bits);
      case 2:
        return py::dtype("float" + bits);
      case 4:
        return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
      case 6:
        return py::dtype("bool");
      default:
        break;
    }
  fail(Status::InvalidArgument, "the tensor's DLPack type (code ", int{type.code}, ", ", int{type.bits},
       " bits) has no numpy dtype");
}

// Keeps the exported array and what its tensor points to.
template <class Holder>
struct Export {
  Holder managed;
  py::array array;
  std::vector<int64_t> shape, strides;
};

template <class Holder>
py::capsule export_as(const py::array& array, const char* name) {
  const dl::DataType type = type_of(array.dtype());
  for (py::ssize_t i = 0; i < array.ndim(); ++i)
    if (array.strides(i) % array.itemsize() != 0)
      throw py::buffer_error("DLPack counts strides in elements, and this array's are not whole elements");
  auto* out = new Export<Holder>{{}, array, {}, {}};
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    out->shape.push_back(array.shape(i));
    out->strides.push_back(array.strides(i) / array.itemsize());
  }
  out->managed.tensor = {const_cast<void*>(array.data()),
                         {dl::cpu, 0},
                         static_cast<int32_t>(array.ndim()),
                         type,
                         out->shape.data(),
                         out->strides.data(),
                         0};
  out->managed.context = out;
  out->managed.deleter = [](Holder* managed) {
    const py::gil_scoped_acquire gil;
    delete static_cast<Export<Holder>*>(managed->context);
  };
  if constexpr (std::is_same_v<Holder, dl::ManagedVersioned>) {
    out->managed.version = {1, 0};
    out->managed.flags = array.writeable() ? 0 : dl::read_only;
  }
  // A consumer renames the capsule; one that nobody consumed frees the tensor itself.
  return py::reinterpret_steal<py::capsule>(PyCapsule_New(&out->managed, name, [](PyObject* capsule) {
    const char* now = PyCapsule_GetName(capsule);
    if (now && (std::strcmp(now, old_name) == 0 || std::strcmp(now, new_name) == 0)) {
      auto* managed = static_cast<Holder*>(PyCapsule_GetPointer(capsule, now));
      managed->deleter(managed);
    }
  }));
}

template <class Holder>
py::array import_as(py::capsule& capsule, const char* name, const char* used_name) {
  auto* managed = static_cast<Holder*>(PyCapsule_GetPointer(capsule.ptr(), name));
  const dl::Tensor& tensor = managed->tensor;
  if (tensor.device.type != dl::cpu)
    fail(Status::InvalidArgument, "the tensor lies on device type ", tensor.device.type,
         ": expected CPU memory; move it with .cpu()");
  const py::dtype dtype = dtype_of(tensor.dtype);
  std::vector<py::ssize_t> shape, strides;
  for (int32_t i = 0; i < tensor.ndim; ++i) shape.push_back(tensor.shape[i]);
  for (int32_t i = 0; tensor.strides && i < tensor.ndim; ++i)
    strides.push_back(tensor.strides[i] * dtype.itemsize());
  auto* data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  bool writeable = true;
  if constexpr (std::is_same_v<Holder, dl::ManagedVersioned>) writeable = !(managed->flags & dl::read_only);
  PyCapsule_SetName(capsule.ptr(), used_name);
  std::shared_ptr<Holder> owner(managed, [](Holder* held) {
    if (held->deleter) held->deleter(held);
  });
  auto* held = new std::shared_ptr<Holder>(std::move(owner));
  const py::capsule base(held, [](void* p) { delete static_cast<std::shared_ptr<Holder>*>(p); });
  py::array out(dtype, shape, strides, data, base);
  if (!writeable) out.attr("flags").attr("writeable") = false;
  return out;
}

}  // namespace

void bind_dlpack(py::module_& m) {
  m.def(
      "to_dlpack",
      [](const py::array& array, bool versioned) {
        // Before 1.0 a tensor could not say that it is read-only.
        if (!versioned && !array.writeable())
          fail(Status::InvalidArgument,
               "a read-only array can only be given to a consumer of DLPack 1.0 or later");
        return versioned ? export_as<dl::ManagedVersioned>(array, new_name)
                         : export_as<dl::Managed>(array, old_name);
      },
      py::arg("array"), py::arg("versioned"));
  m.def(
      "from_dlpack",
      [](py::capsule capsule) {
        if (PyCapsule_IsValid(capsule.ptr(), new_name))
          return import_as<dl::ManagedVersioned>(capsule, new_name, "used_dltensor_versioned");
        if (PyCapsule_IsValid(capsule.ptr(), old_name))
          return import_as<dl::Managed>(capsule, old_name, "used_dltensor");
        fail(Status::InvalidArgument, "not a DLPack capsule, or one that has been used before");
      },
      py::arg("capsule"));
}

}  // namespace xccl::python
