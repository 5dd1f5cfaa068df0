// adjust.cu - a block copies pieces of a row, masked, and then applies those of the row's edits whose tokens it copied.
#include "../machine/gpu.h"
#include "../machine/ptx/grid.h"
#include "../machine/tile/vectors.h"
#include "adjust.h"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPiece = kThreads * 4;  // logits that a block copies at once
constexpr float kLowest = -__builtin_inff();

struct Adjusting {
  const float* logits;
  float* y;
  const int32_t *start, *end, *ids;
  const float* bias;
  const int32_t* count;
  const float *repetition, *frequency, *presence;
  const int32_t *newest, *previous, *mask_row;
  const uint32_t* masks;
  int64_t vocab, edits, previous_rows, mask_rows;
  unsigned blocks;  // of a row
};

struct Row {
  const float* logits;
  float* y;
  int64_t vocab, newest;  // -1: none
  const uint32_t* mask;   // nullptr: every token is allowed, or none is
  bool all, aligned;
  float repetition, frequency, presence;

  CRIA_DEVICE Row(const Adjusting& op, int64_t at)
      : logits(op.logits + at * op.vocab),
        y(op.y + at * op.vocab),
        vocab(op.vocab),
        newest(-1),
        mask(nullptr),
        repetition(op.repetition[at]),
        frequency(op.frequency[at]),
        presence(op.presence[at]) {
    const int64_t row = op.mask_row[at], from = op.newest[at];
    all = row < 0 || !op.masks;
    const bool masked = guard(row < op.mask_rows);
    if (!all && masked) mask = op.masks + row * ((vocab + 31) / 32);
    const bool counted = guard(from < op.previous_rows);
    if (from >= 0 && op.previous && counted) newest = op.previous[from];
    aligned = (reinterpret_cast<uintptr_t>(logits) | reinterpret_cast<uintptr_t>(y)) % 16 == 0;
  }

  // From bit 0: whether `id` and those after it are allowed, as far as their word goes.
  CRIA_DEVICE uint32_t allowed(int64_t id) const { return all ? ~0u : mask ? mask[id / 32] >> id % 32 : 0u; }
  CRIA_DEVICE float edited(float logit, float bias, int64_t count) const {
    logit += bias;
    if (count < 0) return logit;
    logit = logit > 0 ? logit / repetition : product(logit, repetition);
    logit -= product(frequency, float(count));
    return count > 0 ? logit - presence : logit;
  }
  // What is right if it is in no edit; one that it is in writes over it.
  CRIA_DEVICE float copied(int64_t id, float logit, uint32_t bit) const {
    if (!(bit & 1u)) logit = kLowest;
    return id == newest ? edited(logit, 0.0f, 1) : logit;
  }

  // Four logits; id is a multiple of 4.
  CRIA_DEVICE void copy(int64_t id) const {
    if (id >= vocab) return;
    const uint32_t bits = allowed(id);
    if (aligned && id + 4 <= vocab) {
      auto four = load<F32x4>(logits + id);
      CRIA_UNROLL for (int j = 0; j < 4; j++) four.at[j] = copied(id + j, four.at[j], bits >> j);
      store(y + id, four);
      return;
    }
    for (int j = 0; j < 4; j++) {
      const bool exists = guard(id + j < vocab);
      if (exists) y[id + j] = copied(id + j, logits[id + j], bits >> j);
    }
  }
};

CRIA_DEVICE int64_t clamp(int64_t n, int64_t most) { return n < 0 ? 0 : n < most ? n : most; }

__global__ void __launch_bounds__(kThreads) adjust_kernel(Adjusting op, Live live) {
  grid_launch_dependents();
  grid_wait();
  const int64_t at = blockIdx.x / op.blocks, part = blockIdx.x % op.blocks;
  const bool alive = guard(is_live(live, at));
  if (!alive) return;
  const Row row(op, at);
  for (int64_t piece = part * kPiece; piece < op.vocab; piece += op.blocks * kPiece)
    row.copy(piece + int64_t{threadIdx.x} * 4);
  // Edits write over what other threads copied.
  sync_block();
  const int64_t end = clamp(op.end[at], op.edits);
  for (int64_t e = clamp(op.start[at], op.edits) + threadIdx.x; e < end; e += kThreads) {
    const int64_t id = op.ids[e];
    const bool known = guard(id >= 0 && id < op.vocab);
    if (!known || uint32_t(id / kPiece) % op.blocks != part) continue;
    int64_t count = op.count[e];
    if (id == row.newest) count = count < 0 ? 1 : count + 1;
    row.y[id] = row.edited(row.allowed(id) & 1u ? row.logits[id] : kLowest, op.bias[e], count);
  }
}

// Of a row: all rows together as many as the multiprocessors hold at once.
unsigned blocks_of(const Adjust& op, const Chip& chip) {
  const int64_t rows = op.logits.dims[0], pieces = (op.logits.dims[1] + kPiece - 1) / kPiece;
  const int64_t blocks = (int64_t{chip.sms} * (2048 / kThreads) + rows - 1) / rows;
  return unsigned(blocks < pieces ? blocks : pieces);
}

}  // namespace

size_t workspace(const Adjust&, const Chip&) { return 0; }
void supports(const Adjust&) {}

void run(const Adjust& op, const Gpu& gpu) {
  const Adjusting adjusting{op.logits.as<const float>(),
                            op.y.as<float>(),
                            op.start.as<const int32_t>(),
                            op.end.as<const int32_t>(),
                            op.ids.as<const int32_t>(),
                            op.bias.as<const float>(),
                            op.count.as<const int32_t>(),
                            op.repetition.as<const float>(),
                            op.frequency.as<const float>(),
                            op.presence.as<const float>(),
                            op.newest.as<const int32_t>(),
                            op.previous.as<const int32_t>(),
                            op.maskRow.as<const int32_t>(),
                            op.masks.as<const uint32_t>(),
                            op.logits.dims[1],
                            op.ids.dims[0],
                            op.previous ? op.previous.dims[0] : int64_t{0},
                            op.masks ? op.masks.dims[0] : int64_t{0},
                            blocks_of(op, *gpu.chip)};
  const Shape shape{dim3(unsigned(op.logits.dims[0]) * adjusting.blocks), dim3(kThreads), 0, 1, gpu.dependent()};
  launch(adjust_kernel, Adjust::name, shape, gpu.stream, adjusting, live_of(op.logits));
}

}  // namespace cria::CRIA_MACHINE
