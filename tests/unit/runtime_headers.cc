// The runtime's own headers behind functions of C: tests/unit/test_runtime_headers.py holds them against Python.
#include <builtin_fp16.h>
#include <tvm/runtime/base.h>
#include <tvm/support/io.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "support/arena.h"
#include "support/base64.h"
#include "support/bytes_io.h"
#include "support/ring_buffer.h"
#include "support/utils.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace tvm::support;

EXPORT uint16_t half_of_float(float value) { return __truncXfYf2__<float, uint32_t, 23, uint16_t, uint16_t, 10>(value); }
EXPORT uint16_t half_of_double(double value) {
  return __truncXfYf2__<double, uint64_t, 52, uint16_t, uint16_t, 10>(value);
}
EXPORT float float_of_half(uint16_t value) { return __extendXfYf2__<uint16_t, uint16_t, 10, float, uint32_t, 23>(value); }

// What was read through `text` of what was written through it; the text is left in `text`.
EXPORT size_t base64(const char* data, size_t size, char* text, char* back) {
  std::string encoded;
  BytesOutStream out(&encoded);
  Base64OutStream encoder(&out);
  encoder.Write(static_cast<const void*>(data), size);
  encoder.Finish();
  std::memcpy(text, encoded.c_str(), encoded.size() + 1);
  BytesInStream in(encoded);
  Base64InStream decoder(&in);
  decoder.InitPosition();
  return decoder.Read(static_cast<void*>(back), size + 1);
}

EXPORT RingBuffer* ring_new() { return new RingBuffer(); }
EXPORT void ring_free(RingBuffer* ring) { delete ring; }
EXPORT size_t ring_size(const RingBuffer* ring) { return ring->bytes_available(); }
EXPORT void ring_write(RingBuffer* ring, const char* data, size_t size) { ring->Write(data, size); }
EXPORT void ring_read(RingBuffer* ring, char* data, size_t size) { ring->Read(data, size); }
EXPORT size_t ring_send(RingBuffer* ring, char* data, size_t size, size_t most) {
  return ring->ReadWithCallback(
      [&](const void* bytes, size_t offered) {
        const size_t taken = offered < most ? offered : most;
        std::memcpy(data, bytes, taken);
        return taken;
      },
      size);
}
EXPORT size_t ring_receive(RingBuffer* ring, const char* data, size_t size, size_t most) {
  return ring->WriteWithCallback(
      [&](void* bytes, size_t room) {
        const size_t given = room < most ? room : most;
        std::memcpy(bytes, data, given);
        return given;
      },
      size);
}

// Whether so many pieces of these sizes stay apart and whole, before and after everything is taken back.
EXPORT bool arena_holds(const uint32_t* sizes, size_t count) {
  Arena arena;
  for (int round = 0; round < 2; ++round) {
    std::vector<uint64_t*> pieces;
    for (size_t i = 0; i < count; ++i) {
      pieces.push_back(arena.allocate_<uint64_t>(static_cast<int>(sizes[i])));
      if (reinterpret_cast<uintptr_t>(pieces.back()) % alignof(uint64_t) != 0) return false;
      for (uint32_t k = 0; k < sizes[i]; ++k) pieces.back()[k] = i << 32 | k;
    }
    for (size_t i = 0; i < count; ++i) {
      for (uint32_t k = 0; k < sizes[i]; ++k) {
        if (pieces[i][k] != (i << 32 | k)) return false;
      }
    }
    arena.RecycleAll();
  }
  return true;
}

// Names as a vector of strings, as the virtual machine keeps them: how many there were, or -1; joined by newlines.
EXPORT int64_t read_names(const char* data, size_t size, char* joined) {
  BytesInStream stream(data, size);
  std::vector<std::string> names;
  if (!stream.Read(&names)) return -1;
  std::string all;
  for (const std::string& name : names) all += name + "\n";
  std::memcpy(joined, all.c_str(), all.size() + 1);
  return static_cast<int64_t>(names.size());
}

EXPORT bool is_number(const char* text) { return IsNumber(text); }
EXPORT bool starts_with(const char* text, const char* beginning) { return StartsWith(text, beginning); }
