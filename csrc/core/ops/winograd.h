// Convolutions by Winograd's tiles: when, with what weights, and their tasks.
#pragma once

#include "../views.h"
#include "products.h"

namespace stdc {

// Of a 3x3 convolution of one input: sets `tiles` and the size of a task where tiles are faster at this size.
void cut_tiles(const Layout& layout, const Op& op, double work, OpLayout& l);
// Weights [block][36][channels][block] in float32, from the packed ones.
Bytes winograd_weights(const PackedWeights& packed, const Op& op, DType dtype, int block);
size_t winograd_scratch(const Op& op, int block, int tiles);
void winograd(const Views& views, const Op& op, const PackedWeights& packed, const float* weights, bool relu);

}  // namespace stdc
