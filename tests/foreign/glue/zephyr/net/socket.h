/* With POSIX names (CONFIG_NET_SOCKETS_POSIX_NAMES or CONFIG_POSIX_API). */
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
