/* lwIP with threads and sockets. */
#define NO_SYS 0
#define LWIP_SOCKET 1
#define LWIP_DNS 1
#define LWIP_COMPAT_SOCKETS 1
#define LWIP_POSIX_SOCKETS_IO_NAMES 1
