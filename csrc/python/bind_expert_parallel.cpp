// ExpertParallel, its results and its planner as xccl/expert_parallel.py uses them.
#include <optional>

#include "moe/expert_parallel.hpp"
#include "moe/plan.hpp"
#include "p2p/point_to_point.hpp"
#include "python/support.hpp"

namespace xccl::python {
namespace {

RowType row_type(const std::string& name) {
  for (const RowType type : {RowType::float32, RowType::float16, RowType::bfloat16})
    if (name == element_type_name(type)) return type;
  fail(Status::InvalidArgument, "dtype \"", name, "\": expected float32, float16 or bfloat16");
}

RowLayout row_layout(const std::string& name) {
  for (const RowLayout layout : {RowLayout::expert, RowLayout::token})
    if (name == row_layout_name(layout)) return layout;
  fail(Status::InvalidArgument, "layout=\"", name, "\": expected \"expert\" or \"token\"");
}

Quant quantisation(const char* argument, const std::optional<std::string>& name) {
  if (!name) return Quant::none;
  for (const Quant quant : {Quant::int8, Quant::fp8_e4m3})
    if (*name == quant_name(quant)) return quant;
  fail(Status::InvalidArgument, argument, "='", *name, "': expected None, \"int8\" or \"fp8_e4m3\"");
}

EpShape make_shape(int64_t num_experts, int64_t hidden, int64_t max_tokens, int64_t topk,
                   const std::string& dtype, const std::string& layout, int64_t results,
                   const std::optional<std::string>& dispatch_quant,
                   const std::optional<std::string>& combine_quant, std::vector<int32_t> shared_experts,
                   int64_t token_ranks) {
  return EpShape{num_experts,
                 hidden,
                 max_tokens,
                 topk,
                 row_type(dtype),
                 row_layout(layout),
                 results,
                 quantisation("dispatch_quant", dispatch_quant),
                 quantisation("combine_quant", combine_quant),
                 std::move(shared_experts),
                 token_ranks};
}

// For each rank the expert in each of its slots, as Python has it.
using Slots = std::vector<std::vector<int32_t>>;

Placement make_placement(const EpShape& shape, const std::optional<Slots>& slots, int ranks) {
  check(shape, ranks);
  if (!slots) return even_placement(shape, ranks);
  std::vector<int32_t> counts, held;
  for (const std::vector<int32_t>& of_rank : *slots) {
    counts.push_back(static_cast<int32_t>(of_rank.size()));
    held.insert(held.end(), of_rank.begin(), of_rank.end());
  }
  return Placement(static_cast<int>(shape.num_experts), counts, std::move(held));
}

// Of the rows that a dispatch brings: the dtype given for rows, or that of codes.
py::dtype x_dtype(const EpShape& shape, const py::dtype& rows) {
  switch (shape.dispatch_quant) {
    case Quant::none:
      return rows;
    case Quant::int8:
      return py::dtype::of<int8_t>();
    case Quant::fp8_e4m3:
      return py::dtype::from_args(py::module_::import("ml_dtypes").attr("float8_e4m3fn"));
  }
  return rows;
}

// An array over a result's rows keeps the result's slot leased: the pool does not hand it out while the array lives.
struct PyResult {
  std::shared_ptr<Dispatched> native;
  py::dtype dtype, x_dtype;
  int64_t hidden;

  std::shared_ptr<Lease> lease() const {
    if (!native->lease)
      fail(Status::InvalidArgument,
           "this result has been released; its rows are gone (its routing may still be used)");
    return native->lease;
  }
  py::array x() const {
    return array_over(lease()->slot().x.base(), x_dtype, {static_cast<py::ssize_t>(native->x_rows()), hidden},
                      lease());
  }
  // None where rows are not quantised; one for each row, or (rows, blocks).
  py::object scales() const {
    const auto held = lease();
    const float* const memory = native->scales();
    if (!memory) return py::none();
    std::vector<py::ssize_t> shape = {static_cast<py::ssize_t>(native->x_rows())};
    if (native->format.quant == Quant::fp8_e4m3)
      shape.push_back(static_cast<py::ssize_t>(native->format.scale_count()));
    return array_over(memory, py::dtype::of<float>(), shape, held);
  }
  py::array out_at(const std::byte* memory) const {
    return array_over(memory, dtype, {static_cast<py::ssize_t>(native->rows()), hidden}, lease());
  }
};

class PyExpertParallel {
 public:
  PyExpertParallel(std::shared_ptr<Communicator> comm, const EpShape& shape,
                   const std::optional<Slots>& slots, py::dtype dtype, double timeout)
      : dtype_(std::move(dtype)) {
    Placement placement = make_placement(shape, slots, comm->size());
    x_dtype_ = xccl::python::x_dtype(shape, dtype_);
    const Blocking blocking;
    native_ = std::make_unique<ExpertParallel>(std::move(comm), shape, std::move(placement), timeout);
  }

  py::array input_buffer(int64_t tokens, double timeout) {
    std::byte* memory;
    {
      const Blocking blocking;
      memory = native_->input_buffer(tokens, timeout);
    }
    return array_over(memory, dtype_, {tokens, shape().hidden}, native_->share_memory());
  }

  PyResult dispatch(const py::array& x, const std::optional<py::array>& topk_idx,
                    const std::optional<py::array>& topk_weights, std::shared_ptr<const Routing> routing,
                    int64_t tag, double timeout) {
    const TopK topk = checked(x, topk_idx, topk_weights, routing.get(), tag);
    const void* rows = x.data();
    std::shared_ptr<Dispatched> result;
    {
      const Blocking blocking;
      result = native_->dispatch(rows, topk, std::move(routing), timeout);
    }
    return PyResult{result, dtype_, x_dtype_, shape().hidden};
  }

  // Python keeps the arrays until it has been waited for.
  void start_dispatch(const py::array& x, const std::optional<py::array>& topk_idx,
                      const std::optional<py::array>& topk_weights, std::shared_ptr<const Routing> routing,
                      int64_t tag, double timeout) {
    const TopK topk = checked(x, topk_idx, topk_weights, routing.get(), tag);
    const void* rows = x.data();
    {
      const Blocking blocking;
      native_->start_dispatch(rows, topk, std::move(routing), timeout);
    }
    kept_ = x;  // all else has been taken in
  }
  PyResult finish_dispatch(double timeout) {
    std::shared_ptr<Dispatched> result;
    {
      const Blocking blocking;
      result = native_->finish_dispatch(timeout);
    }
    kept_ = py::object();
    return PyResult{result, dtype_, x_dtype_, shape().hidden};
  }
  bool finished_aside() const { return native_->finished_aside(); }
  bool can_finish() {
    const Blocking blocking;
    return native_->can_finish();
  }

  py::array output_buffer(PyResult& d, double timeout) {
    std::byte* memory;
    {
      const Blocking blocking;
      memory = native_->output_buffer(*d.native, timeout);
    }
    return d.out_at(memory);
  }

  void combine(const py::array& rows, PyResult& d, const std::optional<py::array>& weights, py::array& out,
               double timeout) {
    const float* w = checked(rows, d, weights, out);
    const void* from = rows.data();
    void* to = out.mutable_data();
    const Blocking blocking;
    native_->combine(from, *d.native, w, to, timeout);
  }
  void start_combine(const py::array& rows, PyResult& d, const std::optional<py::array>& weights,
                     py::array& out, double timeout) {
    const float* w = checked(rows, d, weights, out);
    const void* from = rows.data();
    void* to = out.mutable_data();
    py::object kept = py::make_tuple(rows, weights, out);
    {
      const Blocking blocking;
      native_->start_combine(from, *d.native, w, to, timeout);
    }
    kept_ = std::move(kept);
  }
  void finish_combine(double timeout) {
    {
      const Blocking blocking;
      native_->finish_combine(timeout);
    }
    kept_ = py::object();
  }

  void close() {
    {
      const Blocking blocking;
      native_->close();
    }
    kept_ = py::object();
  }
  bool closed() const { return native_->closed(); }
  std::vector<int32_t> experts_on(int rank) const {
    std::vector<int32_t> out;
    const Placement& placement = native_->placement();
    for (int p = placement.first(rank); p < placement.first(rank + 1); ++p)
      out.push_back(placement.expert(p));
    return out;
  }
  std::vector<int32_t> local_experts() const { return experts_on(native_->comm().rank()); }
  Slots placement() const {
    Slots out;
    for (int rank = 0; rank < native_->placement().ranks(); ++rank) out.push_back(experts_on(rank));
    return out;
  }
  void set_placement(const Slots& slots, double timeout) {
    std::vector<int32_t> held;
    for (const std::vector<int32_t>& of_rank : slots) held.insert(held.end(), of_rank.begin(), of_rank.end());
    const Blocking blocking;
    native_->set_placement(std::move(held), timeout);
  }
  py::array_t<int64_t> expert_load(bool reset) {
    std::vector<int64_t>& load = native_->expert_load();
    py::array_t<int64_t> out(static_cast<py::ssize_t>(load.size()), load.data());  // a copy
    if (reset) std::fill(load.begin(), load.end(), 0);
    return out;
  }
  uint64_t records_written() const { return native_->records_written(); }
  const EpShape& shape() const { return native_->shape(); }

 private:
  TopK checked(const py::array& x, const std::optional<py::array>& topk_idx,
               const std::optional<py::array>& topk_weights, const Routing* routing, int64_t tag) const {
    require_array("x", x, dtype_, {-1, shape().hidden});
    TopK topk;
    topk.tokens = x.shape(0);
    topk.tag = tag;
    if (!routing) fill(topk, *topk_idx, *topk_weights);
    return topk;
  }
  // The weights, or null.
  const float* checked(const py::array& rows, const PyResult& d, const std::optional<py::array>& weights,
                       const py::array& out) const {
    require_array("rows", rows, dtype_, {static_cast<int64_t>(d.native->rows()), shape().hidden});
    require_array("out", out, dtype_, {d.native->routing->tokens, shape().hidden}, true);
    if (!weights) return nullptr;
    require_array("weights", *weights, py::dtype::of<float>(), {d.native->routing->tokens, shape().slots()});
    return static_cast<const float*>(weights->data());
  }
  void fill(TopK& topk, const py::array& idx, const py::array& weights) const {
    topk.wide = idx.dtype().equal(py::dtype::of<int64_t>());
    require_array("topk_idx", idx, topk.wide ? py::dtype::of<int64_t>() : py::dtype::of<int32_t>(),
                  {topk.tokens, shape().topk});
    require_array("topk_weights", weights, py::dtype::of<float>(), {topk.tokens, shape().slots()});
    topk.experts = idx.data();
    topk.weights = static_cast<const float*>(weights.data());
  }

  // What the call that has been started reads and writes: nobody may let go of it before the progress thread has, and
  // that ends with native_.
  py::object kept_;
  std::unique_ptr<ExpertParallel> native_;
  py::dtype dtype_, x_dtype_;
};

// Read-only arrays over a routing's vectors; the routing lives as long as they do.
template <class T>
py::array routing_array(const std::shared_ptr<const Routing>& routing, const std::vector<T>& values) {
  py::array out =
      array_over(values.data(), py::dtype::of<T>(), {static_cast<py::ssize_t>(values.size())}, routing);
  out.attr("flags").attr("writeable") = false;
  return out;
}

}  // namespace

void bind_expert_parallel(py::module_& m) {
  py::class_<Routing, std::shared_ptr<Routing>>(m, "Routing")
      .def_property_readonly("num_tokens", [](const Routing& r) { return r.tokens; })
      .def_property_readonly("num_rows", [](const Routing& r) { return r.rows(); })
      .def_property_readonly(
          "counts", [](const std::shared_ptr<Routing>& r) { return routing_array<int64_t>(r, r->counts); })
      .def_property_readonly(
          "src_rank",
          [](const std::shared_ptr<Routing>& r) { return routing_array<int32_t>(r, r->src_rank); })
      .def_property_readonly(
          "src_token",
          [](const std::shared_ptr<Routing>& r) { return routing_array<int32_t>(r, r->src_token); })
      .def_property_readonly(
          "token_row",
          [](const std::shared_ptr<Routing>& r) { return routing_array<int32_t>(r, r->token_row); })
      .def_property_readonly("weights", [](const std::shared_ptr<Routing>& r) {
        return routing_array<float>(r, r->row_weight);
      });

  py::class_<PyResult>(m, "Dispatched")
      .def_property_readonly(
          "routing", [](const PyResult& d) { return std::const_pointer_cast<Routing>(d.native->routing); })
      .def_property_readonly("released", [](const PyResult& d) { return !d.native->lease; })
      .def_property_readonly("tag", [](const PyResult& d) { return d.native->tag; })
      .def("rows", &PyResult::x)
      .def("scales", &PyResult::scales)
      .def("release", [](const PyResult& d) { d.native->lease.reset(); });

  py::class_<PyExpertParallel>(m, "ExpertParallel")
      .def(py::init([](std::shared_ptr<Communicator> comm, int64_t num_experts, int64_t hidden,
                       int64_t max_tokens, int64_t topk, const std::string& dtype, py::dtype np_dtype,
                       const std::string& layout, int64_t results,
                       const std::optional<std::string>& dispatch_quant,
                       const std::optional<std::string>& combine_quant, const std::optional<Slots>& placement,
                       std::vector<int32_t> shared_experts, int64_t token_ranks, double timeout) {
             return std::make_unique<PyExpertParallel>(
                 std::move(comm),
                 make_shape(num_experts, hidden, max_tokens, topk, dtype, layout, results, dispatch_quant,
                            combine_quant, std::move(shared_experts), token_ranks),
                 placement, std::move(np_dtype), timeout);
           }),
           py::arg("comm"), py::arg("num_experts"), py::arg("hidden"), py::arg("max_tokens"), py::arg("topk"),
           py::arg("dtype"), py::arg("np_dtype"), py::arg("layout"), py::arg("results"),
           py::arg("dispatch_quant"), py::arg("combine_quant"), py::arg("placement"),
           py::arg("shared_experts"), py::arg("token_ranks"), py::arg("timeout"))
      .def_property_readonly("local_experts", &PyExpertParallel::local_experts)
      .def_property_readonly("placement", &PyExpertParallel::placement)
      .def("set_placement", &PyExpertParallel::set_placement, py::arg("placement"), py::arg("timeout"))
      .def("expert_load", &PyExpertParallel::expert_load, py::arg("reset"))
      .def_property_readonly("closed", &PyExpertParallel::closed)
      .def("input_buffer", &PyExpertParallel::input_buffer, py::arg("n"), py::arg("timeout"))
      .def("dispatch", &PyExpertParallel::dispatch, py::arg("x"), py::arg("topk_idx"),
           py::arg("topk_weights"), py::arg("routing"), py::arg("tag"), py::arg("timeout"))
      .def_property_readonly("records_written", &PyExpertParallel::records_written)
      .def("output_buffer", &PyExpertParallel::output_buffer, py::arg("d"), py::arg("timeout"))
      .def("combine", &PyExpertParallel::combine, py::arg("rows"), py::arg("d"), py::arg("weights"),
           py::arg("out"), py::arg("timeout"))
      .def("start_dispatch", &PyExpertParallel::start_dispatch, py::arg("x"), py::arg("topk_idx"),
           py::arg("topk_weights"), py::arg("routing"), py::arg("tag"), py::arg("timeout"))
      .def("finish_dispatch", &PyExpertParallel::finish_dispatch, py::arg("timeout"))
      .def("start_combine", &PyExpertParallel::start_combine, py::arg("rows"), py::arg("d"),
           py::arg("weights"), py::arg("out"), py::arg("timeout"))
      .def("finish_combine", &PyExpertParallel::finish_combine, py::arg("timeout"))
      .def("can_finish", &PyExpertParallel::can_finish)
      .def_property_readonly("finished_aside", &PyExpertParallel::finished_aside)
      .def("close", &PyExpertParallel::close);

  m.def(
      "plan",
      [](int64_t num_experts, int64_t hidden, int64_t max_tokens, int64_t topk, const std::string& dtype,
         const std::string& layout, int64_t results, const std::optional<std::string>& dispatch_quant,
         const std::optional<std::string>& combine_quant, const std::optional<Slots>& slots,
         std::vector<int32_t> shared_experts, int size, int rank, uint64_t tokens,
         std::optional<uint64_t> given_rows, bool in_place) {
        const EpShape shape = make_shape(num_experts, hidden, max_tokens, topk, dtype, layout, results,
                                         dispatch_quant, combine_quant, std::move(shared_experts), 0);
        check(shape, size);
        const uint64_t annex = PointToPoint::annex_bytes(size);
        require_joinable(size, annex);
        const Placement placement = make_placement(shape, slots, size);
        const uint64_t rows = given_rows ? *given_rows : even_rows(shape, placement, rank, tokens);
        py::list lines;
        for (const PlanLine& line : plan(shape, placement, rank, {tokens, rows, in_place}, annex))
          lines.append(py::make_tuple(line.what, line.committed, line.reserved, line.shrink));
        return py::make_tuple(rows, lines);
      },
      py::arg("num_experts"), py::arg("hidden"), py::arg("max_tokens"), py::arg("topk"), py::arg("dtype"),
      py::arg("layout"), py::arg("results"), py::arg("dispatch_quant"), py::arg("combine_quant"),
      py::arg("placement"), py::arg("shared_experts"), py::arg("size"), py::arg("rank"), py::arg("tokens"),
      py::arg("rows"), py::arg("in_place"));
}

}  // namespace xccl::python
