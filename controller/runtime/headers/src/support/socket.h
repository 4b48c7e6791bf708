// TCP for the RPC protocol of TVM's runtime, on Linux.
#ifndef TVM_SUPPORT_SOCKET_H_
#define TVM_SUPPORT_SOCKET_H_

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace tvm {
namespace support {

// Where to connect to: the first address of a name.
struct SockAddr {
  sockaddr_storage address{};
  socklen_t length = 0;

  SockAddr(const char* host, int port) : text_(std::string(host) + ":" + std::to_string(port)) {
    addrinfo wanted{};
    wanted.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const int status = getaddrinfo(host, std::to_string(port).c_str(), &wanted, &found);
    TVM_FFI_ICHECK_EQ(status, 0) << "the name " << host << " is not known: " << gai_strerror(status);
    std::memcpy(&address, found->ai_addr, found->ai_addrlen);
    length = found->ai_addrlen;
    freeaddrinfo(found);
  }
  int ss_family() const { return address.ss_family; }
  std::string AsString() const { return text_; }

 private:
  std::string text_;
};

class Socket {
 public:
  using SockType = int;

  [[noreturn]] static void Error(const char* what) {
    TVM_FFI_THROW(InternalError) << what << ": " << std::strerror(errno);
    TVM_FFI_UNREACHABLE();
  }
};

// A number of a socket; who has it must close it.
class TCPSocket : public Socket {
 public:
  TCPSocket() = default;
  explicit TCPSocket(SockType socket) : socket_(socket) {}

  void Create(int family) {
    socket_ = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (socket_ == -1) Error("socket");
    // A request is answered before the next one is sent: waiting for more to send only costs.
    const int on = 1;
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  bool BadSocket() const { return socket_ == -1; }
  void Close() {
    if (socket_ != -1) ::close(socket_);
    socket_ = -1;
  }
  bool Connect(const SockAddr& to) {
    return Again([&] { return ::connect(socket_, reinterpret_cast<const sockaddr*>(&to.address), to.length); }) == 0;
  }
  ssize_t Send(const void* data, size_t size) {
    return Again([&] { return ::send(socket_, data, size, MSG_NOSIGNAL); });
  }
  ssize_t Recv(void* data, size_t size) {
    return Again([&] { return ::recv(socket_, data, size, 0); });
  }
  // How many bytes went before the other side closed.
  size_t SendAll(const void* data, size_t size) {
    return All(size, [&](size_t done) { return Send(static_cast<const char*>(data) + done, size - done); });
  }
  size_t RecvAll(void* data, size_t size) {
    return All(size, [&](size_t done) { return Recv(static_cast<char*>(data) + done, size - done); });
  }

 private:
  // A signal may interrupt a call; Python's own handlers run in between, so that ^C ends a wait.
  template <typename Call>
  static auto Again(Call call) -> decltype(call()) {
    for (;;) {
      const auto result = call();
      if (result != -1 || errno != EINTR) return result;
      if (TVMFFIEnvCheckSignals() != 0) throw ffi::EnvErrorAlreadySet();
    }
  }
  template <typename Call>
  static size_t All(size_t size, Call call) {
    size_t done = 0;
    while (done < size) {
      const ssize_t moved = call(done);
      if (moved == -1) Error("an RPC connection");
      if (moved == 0) break;
      done += static_cast<size_t>(moved);
    }
    return done;
  }

  SockType socket_ = -1;
};

}  // namespace support
}  // namespace tvm

#endif  // TVM_SUPPORT_SOCKET_H_
