// How values become bytes in a stream. The format is that of the host's TVM: numbers and plain structs as they lie in
// memory, strings, vectors and maps as a 64-bit count and their elements, classes by their own Save and Load.
#ifndef TVM_SUPPORT_SERIALIZER_H_
#define TVM_SUPPORT_SERIALIZER_H_

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/endian.h>
#include <tvm/ffi/string.h>
#include <tvm/support/io.h>

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

static_assert(TVM_FFI_IO_NO_ENDIAN_SWAP, "the runtime is built for little-endian machines only");

namespace tvm {
namespace support {

template <typename T, typename = void>
struct SavesItself : std::false_type {};

template <typename T>
struct SavesItself<T, std::void_t<decltype(std::declval<const T&>().Save(std::declval<Stream*>()))>> : std::true_type {};

template <typename T>
struct Serializer<T, std::enable_if_t<SavesItself<T>::value>> {
  static void Write(Stream* stream, const T& value) { value.Save(stream); }
  static bool Read(Stream* stream, T* value) { return value->Load(stream); }
};

template <typename T>
struct Serializer<T, std::enable_if_t<std::is_trivially_copyable_v<T> && !SavesItself<T>::value>> {
  static void Write(Stream* stream, const T& value) { stream->Write(static_cast<const void*>(&value), sizeof(T)); }
  static bool Read(Stream* stream, T* value) { return stream->Read(static_cast<void*>(value), sizeof(T)) == sizeof(T); }
};

namespace detail {

// A count as this machine counts; whether it can.
inline bool ReadCount(Stream* stream, size_t* count) {
  uint64_t found;
  if (!stream->Read(&found) || found > std::numeric_limits<size_t>::max()) return false;
  *count = static_cast<size_t>(found);
  return true;
}

// A file that lies about its counts is found out before it is given that much memory.
constexpr size_t kStep = size_t{1} << 20;

template <typename Sequence>
bool ReadBytes(Stream* stream, Sequence* values, size_t count) {
  using T = typename Sequence::value_type;
  values->clear();
  while (count != 0) {
    const size_t done = values->size(), step = count < kStep ? count : kStep;
    values->resize(done + step);
    if (stream->Read(static_cast<void*>(values->data() + done), step * sizeof(T)) != step * sizeof(T)) return false;
    count -= step;
  }
  return true;
}

}  // namespace detail

template <>
struct Serializer<std::string> {
  static void Write(Stream* stream, const std::string& value) {
    stream->Write(static_cast<uint64_t>(value.size()));
    if (!value.empty()) stream->Write(static_cast<const void*>(value.data()), value.size());
  }
  static bool Read(Stream* stream, std::string* value) {
    size_t count;
    return detail::ReadCount(stream, &count) && detail::ReadBytes(stream, value, count);
  }
};

template <>
struct Serializer<ffi::String> {
  static void Write(Stream* stream, const ffi::String& value) { stream->Write(std::string(value)); }
  static bool Read(Stream* stream, ffi::String* value) {
    std::string text;
    if (!stream->Read(&text)) return false;
    *value = ffi::String(std::move(text));
    return true;
  }
};

template <typename T>
struct Serializer<std::vector<T>> {
  static constexpr bool kPlain = std::is_trivially_copyable_v<T> && !SavesItself<T>::value;

  static void Write(Stream* stream, const std::vector<T>& values) {
    stream->Write(static_cast<uint64_t>(values.size()));
    if constexpr (kPlain) {
      if (!values.empty()) stream->Write(static_cast<const void*>(values.data()), values.size() * sizeof(T));
    } else {
      stream->WriteArray(values.data(), values.size());
    }
  }
  static bool Read(Stream* stream, std::vector<T>* values) {
    size_t count;
    if (!detail::ReadCount(stream, &count)) return false;
    if constexpr (kPlain) return detail::ReadBytes(stream, values, count);
    values->clear();
    for (; count != 0; --count) {
      values->emplace_back();
      if (!stream->Read(&values->back())) return false;
    }
    return true;
  }
};

template <typename T>
struct Serializer<ffi::Array<T>> {
  static void Write(Stream* stream, const ffi::Array<T>& values) {
    stream->Write(std::vector<T>(values.begin(), values.end()));
  }
  static bool Read(Stream* stream, ffi::Array<T>* values) {
    std::vector<T> found;
    if (!stream->Read(&found)) return false;
    *values = ffi::Array<T>(found.begin(), found.end());
    return true;
  }
};

template <typename K, typename V>
struct Serializer<std::pair<K, V>, std::enable_if_t<!std::is_trivially_copyable_v<std::pair<K, V>>>> {
  static void Write(Stream* stream, const std::pair<K, V>& value) {
    stream->Write(value.first);
    stream->Write(value.second);
  }
  static bool Read(Stream* stream, std::pair<K, V>* value) {
    return stream->Read(&value->first) && stream->Read(&value->second);
  }
};

template <typename K, typename V>
struct Serializer<std::unordered_map<K, V>> {
  static void Write(Stream* stream, const std::unordered_map<K, V>& values) {
    stream->Write(static_cast<uint64_t>(values.size()));
    for (const auto& [key, value] : values) {
      stream->Write(key);
      stream->Write(value);
    }
  }
  static bool Read(Stream* stream, std::unordered_map<K, V>* values) {
    size_t count;
    if (!detail::ReadCount(stream, &count)) return false;
    for (values->clear(); count != 0; --count) {
      std::pair<K, V> one;
      if (!stream->Read(&one)) return false;
      values->insert(std::move(one));
    }
    return true;
  }
};

}  // namespace support
}  // namespace tvm

#endif  // TVM_SUPPORT_SERIALIZER_H_
