// The kernels of decoding, one source file for each width of tiles.
#pragma once

namespace attn::cuda::decode {

struct DecodeArguments;

void launch_decode_64(const DecodeArguments& arguments, void* stream);
void launch_decode_128(const DecodeArguments& arguments, void* stream);
void launch_decode_256(const DecodeArguments& arguments, void* stream);

}  // namespace attn::cuda::decode
