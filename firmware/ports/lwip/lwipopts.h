/* Settings of lwIP 2.2 for a device with an address from DHCP, UDP for certdist, and TCP for MQTT.
 * Measured with examples/baremetal: the whole image runs in 16 KB of RAM (SIZE.md). */
#ifndef LWIPOPTS_H
#define LWIPOPTS_H

/* One thread without an operating system: the raw API. */
#define NO_SYS 1
#define SYS_LIGHTWEIGHT_PROT 0
#define LWIP_NETCONN 0
#define LWIP_SOCKET 0
#define LWIP_TIMERS 1
#define LWIP_SINGLE_NETIF 1

#define LWIP_IPV4 1
#define LWIP_IPV6 0
#define LWIP_ARP 1
#define ARP_QUEUEING 0
#define ARP_TABLE_SIZE 4
#define LWIP_DHCP 1
/* The check for a second holder of the address takes seconds, and DHCP servers make it, too. */
#define LWIP_DHCP_DOES_ACD_CHECK 0
#define LWIP_UDP 1
#define LWIP_DNS 1
#define DNS_TABLE_SIZE 1
#define DNS_MAX_REQUESTS 1
#define DNS_MAX_SERVERS 1
#define DNS_MAX_NAME_LENGTH 128
#define LWIP_RAW 0
#define LWIP_ICMP 1
#define IP_REASSEMBLY 0
#define IP_FRAG 0
#define LWIP_NETIF_STATUS_CALLBACK 0
#define LWIP_NETIF_LINK_CALLBACK 0
#define LWIP_STATS 0
#define LWIP_DEBUG 0
#define LWIP_CHECKSUM_CTRL_PER_NETIF 0

#define LWIP_TCP 1
#define TCP_MSS 256
#define TCP_WND (2 * TCP_MSS)
#define TCP_SND_BUF (2 * TCP_MSS)
#define TCP_SND_QUEUELEN 6
#define TCP_QUEUE_OOSEQ 0
#define TCP_OVERSIZE 0
#define LWIP_ALTCP 0
/* The longest CONNECT of IoT Platform: client ID 111, user name 97, password 64. */
#define MQTT_OUTPUT_RINGBUF_SIZE 320
#define MQTT_VAR_HEADER_BUFFER_LEN 64
#define MQTT_REQ_MAX_IN_FLIGHT 1

#define MEM_ALIGNMENT 4
/* Aligns the headers that follow Ethernet's 14 bytes to a word. */
#define ETH_PAD_SIZE 2
/* The longest message that is sent is DHCP's, with 308 bytes. TCP also keeps the bytes that are not
 * acknowledged. */
#define MEM_SIZE 1400
#define MEMP_NUM_PBUF 2
#ifndef MEMP_NUM_UDP_PCB
#define MEMP_NUM_UDP_PCB 3 /* DHCP, DNS and certdist */
#endif
#define MEMP_NUM_TCP_PCB 1
#define MEMP_NUM_TCP_PCB_LISTEN 1
#define MEMP_NUM_TCP_SEG 6
/* Timers of certdist, of MQTT, and of the next sign-in. */
#define MEMP_NUM_SYS_TIMEOUT (LWIP_NUM_SYS_TIMEOUT_INTERNAL + 3)
/* Two frames of 600 bytes, such as DHCP's, or six of 256 bytes. */
#define PBUF_POOL_SIZE 6
#define PBUF_POOL_BUFSIZE 256

#endif
