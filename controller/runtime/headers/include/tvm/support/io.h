// Streams of bytes, as the sources of TVM's runtime use them: the wheels leave this header out.
#ifndef TVM_SUPPORT_IO_H_
#define TVM_SUPPORT_IO_H_

#include <cstddef>

namespace tvm {
namespace support {

template <typename T, typename Enable = void>
struct Serializer;

// What can be written to and read from. Numbers are little-endian.
class Stream {
 public:
  virtual ~Stream() = default;
  // Up to `size` bytes; how many there were.
  virtual size_t Read(void* data, size_t size) = 0;
  // How many were taken.
  virtual size_t Write(const void* data, size_t size) = 0;

  template <typename T>
  void Write(const T& value) {
    Serializer<T>::Write(this, value);
  }

  // Whether there was a whole one.
  template <typename T>
  bool Read(T* value) {
    return Serializer<T>::Read(this, value);
  }

  // The elements alone; their number is the caller's to know.
  template <typename T>
  void WriteArray(const T* values, size_t count) {
    for (size_t i = 0; i < count; ++i) Write(values[i]);
  }

  template <typename T>
  bool ReadArray(T* values, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      if (!Read(values + i)) return false;
    }
    return true;
  }
};

}  // namespace support
}  // namespace tvm

#include <tvm/support/serializer.h>

#endif  // TVM_SUPPORT_IO_H_
