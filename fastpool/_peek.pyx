"""A look at a connection's socket, for where no kernel tells that a session has ended.

Owns: what the bytes that wait there say. Refuses: to read any, to block, and to know connections.
"""

cdef extern from *:
    """
    enum { FP_QUIET = 0, FP_DATA = 1, FP_ENDED = 2 };

    #ifdef _WIN32
    #define POLLRDHUP 0
    #include <winsock2.h>
    #pragma comment(lib, "ws2_32.lib")
    static int fp_look(long long fd) {
        char byte;
        int n = recv((SOCKET)fd, &byte, 1, MSG_PEEK);       /* libpq's sockets never block */
        if (n > 0) return FP_DATA;
        return n < 0 && WSAGetLastError() == WSAEWOULDBLOCK ? FP_QUIET : FP_ENDED;
    }
    #else
    #include <errno.h>
    #include <poll.h>
    #include <sys/socket.h>
    #ifndef POLLRDHUP                   /* Linux alone has it; elsewhere recv() finds it out */
    #define POLLRDHUP 0
    #endif
    static int fp_look(long long fd) {
        struct pollfd p = {(int)fd, POLLIN | POLLRDHUP, 0};
        char byte;
        ssize_t n;
        if (poll(&p, 1, 0) <= 0) return FP_QUIET;
        if (p.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) return FP_ENDED;
        n = recv((int)fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        if (n > 0) return FP_DATA;
        return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? FP_QUIET : FP_ENDED;
    }
    #endif
    """
    int FP_QUIET
    int FP_DATA
    int FP_ENDED
    int POLLRDHUP
    int fp_look(long long fd)

QUIET = FP_QUIET
DATA = FP_DATA
ENDED = FP_ENDED
HIDES_END = POLLRDHUP == 0              # whether there may be an end behind DATA


def look(long long fd):
    """Say what a socket holds, without reading it: QUIET, DATA, or ENDED when the other side has
    closed. Never blocks."""
    return fp_look(fd)
