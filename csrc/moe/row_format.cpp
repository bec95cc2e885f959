#include "moe/row_format.hpp"

#include <vector>

#include "base/copy.hpp"

namespace xccl {

void quantise_rows(const Kernels& kernels, const RowFormat& format, const std::byte* from, uint64_t rows,
                   std::byte* to, bool past_caches) {
  const Quantise quantise = kernels.quantise(format.type, format.quant);
  const uint64_t given = format.hidden * element_bytes(format.type), bytes = format.row_bytes();
  auto* scales = reinterpret_cast<float*>(to + format.scales_at(rows));
  // A row that is to go past the caches is made in the nearest one first: its codes come in the wrong portions.
  std::vector<std::byte> near(past_caches ? bytes : 0);
  const FloatEnvironment environment;
  for (uint64_t row = 0; row < rows; ++row, scales += format.scale_count()) {
    std::byte* const codes = past_caches ? near.data() : to + row * bytes;
    quantise(from + row * given, format.hidden, codes, scales);
    if (past_caches) stream_past_caches(to + row * bytes, codes, bytes);
  }
  if (past_caches) finish_streams();
}

}  // namespace xccl
