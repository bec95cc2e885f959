#include "python/support.hpp"

namespace xccl::python {
namespace {

std::string shape_text(const py::array& array) {
  std::string out = "(";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) out += (i ? ", " : "") + std::to_string(array.shape(i));
  return out + (array.ndim() == 1 ? ",)" : ")");
}

std::string shape_text(std::initializer_list<int64_t> shape) {
  std::string out = "(";
  for (const int64_t dim : shape)
    out += (out.size() > 1 ? ", " : "") + (dim < 0 ? std::string("n") : std::to_string(dim));
  return out + (shape.size() == 1 ? ",)" : ")");
}

bool fits(const py::array& array, std::initializer_list<int64_t> shape) {
  if (array.ndim() != static_cast<py::ssize_t>(shape.size())) return false;
  py::ssize_t i = 0;
  for (const int64_t dim : shape)
    if (const int64_t have = array.shape(i++); dim >= 0 && have != dim) return false;
  return true;
}

}  // namespace

void require_array(const char* name, const py::array& array, const py::dtype& dtype,
                   std::initializer_list<int64_t> shape, bool written) {
  const py::dtype have = array.dtype();
  if (!have.is(dtype) && !have.equal(dtype))
    fail(Status::InvalidArgument, name, " has dtype ", std::string(py::str(have)), ": expected ",
         std::string(py::str(dtype)));
  if (!fits(array, shape))
    fail(Status::InvalidArgument, name, " has shape ", shape_text(array), ": expected ", shape_text(shape));
  if (!(array.flags() & py::array::c_style))
    fail(Status::InvalidArgument, name, " is not C-contiguous; pass np.ascontiguousarray(", name, ")");
  if (!(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
    fail(Status::InvalidArgument, name, " is misaligned for its dtype; pass a copy");
  if (written && !array.writeable()) fail(Status::InvalidArgument, name, " is read-only");
}

}  // namespace xccl::python
