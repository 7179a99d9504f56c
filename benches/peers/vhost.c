/* One end of a vhost-user socket, on DPDK's drivers: sends frames to the program at the other end, which sends them
 * back, and checks every byte of each that returns.
 *
 *   vhost EAL-OPTIONS --vdev net_vhost0,... -- circle     a number of frames is always under way
 *   vhost EAL-OPTIONS --vdev net_vhost0,... -- roundtrip  single frames at Poisson gaps, waited for by spinning
 *
 * (or net_virtio_user0, for the other end). Prints lines of a name and a number: the figures at the end, and while it
 * runs when the first frame was back (resumed_us, counted from before the socket could be had) and how far it is
 * (progress, each 100 ms: received, corrupted, strange), for those who kill it. Its exit code says whether all frames came back as they should. */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_mbuf.h>
#include <rte_udp.h>
#include <rte_vhost.h>

#define PORT 0
#define BURST 32
/* Frames that can be told apart while they are away; a power of two, more than two rings hold. */
#define WINDOW 16384
#define LONGEST 9216
#define SHORTEST 60
#define HEADERS (sizeof(struct rte_ether_hdr) + sizeof(struct rte_ipv4_hdr) + sizeof(struct rte_udp_hdr))
/* When this loop itself does not get the processor for so long, frames under way then tell nothing about the other end. */
#define STALL_US 20
/* Round trips of a window, which has a 99th percentile of its own: most windows are left alone by the machine's other doings. */
#define WINDOW_TRIPS 300
/* For the other end to connect, unless told otherwise, and for the last frames to return. */
#define PATIENCE_S 30
#define DRAIN_S 10

static struct options {
	bool roundtrip;
	double gap_us, seconds, settle_s, patience_s;
	unsigned frames, shortest, longest, ring;
	/* What the other end does to addresses: nothing, swap them, or anything and to the rest of the headers too. */
	enum { SAME, SWAPPED, ANY } addresses;
} options = {
	.gap_us = 100, .seconds = 1, .patience_s = PATIENCE_S, .frames = 256, .shortest = 64, .longest = 64, .ring = 256,
};

/* What was sent under a number. */
static struct {
	uint64_t number, sent_at;
	uint16_t len;
	bool away;
} slots[WINDOW];

static struct {
	uint64_t sent, received, corrupted, strange, reordered, given_up, excluded, stalls;
} counts;

static volatile sig_atomic_t ended;
static struct rte_mempool *pool;
static uint64_t next_number, last_number, last_stall, stall_cycles;
static unsigned away;
static uint64_t seed = 88172645463325252;
/* Nanoseconds of each round trip. */
static uint32_t *latencies;
static size_t measured, room;

static void end(int signal)
{
	(void)signal;
	ended = 1;
}

static uint64_t chance(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* Writes the frame of that number and length. Its bytes follow from the two alone. */
static void compose(uint8_t *frame, uint64_t number, uint16_t len, bool swapped)
{
	static const struct rte_ether_addr here = {{0x02, 0, 0, 0, 0, 0x0a}}, there = {{0x02, 0, 0, 0, 0, 0x0b}};
	struct rte_ether_hdr *ether = (struct rte_ether_hdr *)frame;
	struct rte_ipv4_hdr *ip = (struct rte_ipv4_hdr *)(ether + 1);
	struct rte_udp_hdr *udp = (struct rte_udp_hdr *)(ip + 1);
	uint64_t word = number * 0x9e3779b97f4a7c15;

	memset(frame, 0, HEADERS);
	ether->src_addr = swapped ? there : here;
	ether->dst_addr = swapped ? here : there;
	ether->ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
	ip->version_ihl = RTE_IPV4_VHL_DEF;
	ip->total_length = rte_cpu_to_be_16(len - sizeof(*ether));
	ip->time_to_live = 64;
	ip->next_proto_id = IPPROTO_UDP;
	/* l3fwd-power's first route leads back to its port 0. */
	ip->dst_addr = rte_cpu_to_be_32(RTE_IPV4(1, 1, 1, 1));
	ip->src_addr = rte_cpu_to_be_32(RTE_IPV4(10, 0, 0, 1));
	ip->hdr_checksum = rte_ipv4_cksum(ip);
	udp->src_port = udp->dst_port = rte_cpu_to_be_16(9);
	udp->dgram_len = rte_cpu_to_be_16(len - sizeof(*ether) - sizeof(*ip));
	memcpy(frame + HEADERS, &number, sizeof(number));
	for (unsigned at = HEADERS + sizeof(number); at < len; at += sizeof(word)) {
		word += 0x9e3779b97f4a7c15;
		memcpy(frame + at, &word, RTE_MIN(sizeof(word), (size_t)len - at));
	}
}

/* A frame in as many buffers as it takes, or none. */
static struct rte_mbuf *frame_of(uint64_t number, uint16_t len)
{
	static uint8_t bytes[LONGEST + sizeof(uint64_t)];
	struct rte_mbuf *head = NULL, **link = &head, *last = NULL;

	compose(bytes, number, len, false);
	for (unsigned done = 0; done < len;) {
		struct rte_mbuf *part = rte_pktmbuf_alloc(pool);

		if (part == NULL) {
			rte_pktmbuf_free(head);
			return NULL;
		}
		part->data_len = RTE_MIN(len - done, (unsigned)rte_pktmbuf_tailroom(part));
		memcpy(rte_pktmbuf_mtod(part, void *), bytes + done, part->data_len);
		done += part->data_len;
		*link = last = part;
		link = &last->next;
		if (part != head)
			head->nb_segs++;
	}
	head->pkt_len = len;
	return head;
}

/* Whether a frame that came back is what was sent; takes it off the list of those away. */
static void check(struct rte_mbuf *frame, uint64_t now)
{
	static uint8_t expected[LONGEST + sizeof(uint64_t)], copy[LONGEST];
	const uint8_t *bytes;
	uint64_t number;

	if (frame->pkt_len < SHORTEST || frame->pkt_len > LONGEST) {
		counts.strange++;
		return;
	}
	bytes = rte_pktmbuf_read(frame, 0, frame->pkt_len, copy);
	memcpy(&number, bytes + HEADERS, sizeof(number));
	typeof(&slots[0]) slot = &slots[number % WINDOW];
	if (!slot->away || slot->number != number) {
		/* Never sent, there before, or given up. */
		counts.strange++;
		return;
	}
	unsigned skip = options.addresses == ANY ? HEADERS : 0;
	compose(expected, number, slot->len, options.addresses == SWAPPED);
	if (frame->pkt_len != slot->len || memcmp(bytes + skip, expected + skip, slot->len - skip) != 0)
		counts.corrupted++;
	counts.reordered += number < last_number;
	last_number = RTE_MAX(last_number, number);
	counts.received++;
	slot->away = false;
	away--;
	if (slot->sent_at < last_stall)
		counts.excluded++;
	else if (measured < room)
		latencies[measured++] = (double)(now - slot->sent_at) * 1e9 / rte_get_tsc_hz();
}

static void receive(void)
{
	struct rte_mbuf *frames[BURST];
	unsigned got = rte_eth_rx_burst(PORT, 0, frames, BURST);

	if (got == 0)
		return;
	uint64_t now = rte_rdtsc();
	for (unsigned i = 0; i < got; i++)
		check(frames[i], now);
	rte_pktmbuf_free_bulk(frames, got);
}

/* Sends up to `count` new frames. */
static void send_new(unsigned count)
{
	struct rte_mbuf *frames[BURST];
	unsigned made = 0, sent;

	for (; made < RTE_MIN(count, (unsigned)BURST); made++) {
		uint64_t number = next_number + made;
		typeof(&slots[0]) slot = &slots[number % WINDOW];
		uint16_t len = options.shortest + chance() % (options.longest - options.shortest + 1);

		if (slot->away) {
			/* A whole window later it will not come any more. */
			slot->away = false;
			away--;
			counts.given_up++;
		}
		frames[made] = frame_of(number, len);
		if (frames[made] == NULL)
			break;
		slot->number = number;
		slot->len = len;
	}
	uint64_t now = rte_rdtsc();
	sent = rte_eth_tx_burst(PORT, 0, frames, made);
	for (unsigned i = 0; i < sent; i++) {
		slots[(next_number + i) % WINDOW].sent_at = now;
		slots[(next_number + i) % WINDOW].away = true;
	}
	next_number += sent;
	away += sent;
	counts.sent += sent;
	if (sent < made)
		rte_pktmbuf_free_bulk(frames + sent, made - sent);
}

static uint64_t poisson(void)
{
	double uniform = ((chance() >> 11) + 1) / 9007199254740993.0;

	return -log(uniform) * options.gap_us * 1e-6 * rte_get_tsc_hz();
}

/* When it could have had the processor and had not. */
static uint64_t look_for_stall(uint64_t before)
{
	uint64_t now = rte_rdtsc();

	if (now - before > stall_cycles) {
		last_stall = now;
		counts.stalls++;
	}
	return now;
}

static void drain(double seconds)
{
	uint64_t now = rte_rdtsc(), stop = now + seconds * rte_get_tsc_hz();

	while (away > 0 && rte_rdtsc() < stop) {
		receive();
		now = look_for_stall(now);
	}
}

/* Some programs lose frames that reach them while they start: what was counted so far does not count. */
static void forget(void)
{
	drain(DRAIN_S / 10.0);
	for (unsigned i = 0; i < WINDOW; i++)
		slots[i].away = false;
	memset(&counts, 0, sizeof(counts));
	away = measured = 0;
}

/* Sends and receives until the time is over. Returns the seconds that it took. */
static double run(uint64_t began, double time_s)
{
	uint64_t hz = rte_get_tsc_hz(), start = rte_rdtsc(), stop = start + time_s * hz, now = start;
	uint64_t due = start + poisson(), progress = start + hz / 10;
	static bool resumed;

	while (!ended && now < stop) {
		receive();
		if (!resumed && counts.received > 0) {
			resumed = true;
			printf("resumed_us %.0f\n", (double)(rte_rdtsc() - began) * 1e6 / hz);
		}
		now = look_for_stall(now);
		if (now >= progress) {
			progress += hz / 10;
			printf("progress %lu %lu %lu\n", counts.received, counts.corrupted, counts.strange);
		}
		if (!options.roundtrip) {
			if (away < options.frames)
				send_new(options.frames - away);
			/* A burst of long frames takes a while to write. */
			now = rte_rdtsc();
		} else if (now >= due) {
			send_new(1);
			due = now > due + stall_cycles ? now + poisson() : due + poisson();
			/* What a wake-up costs the waker is no stall. */
			now = rte_rdtsc();
		}
	}
	return (double)(now - start) / hz;
}

static int open_port(void)
{
	struct rte_eth_conf conf = {.rxmode.mtu = RTE_MAX(1500u, options.longest - (unsigned)sizeof(struct rte_ether_hdr))};
	struct rte_eth_dev_info info;

	if (!rte_eth_dev_is_valid_port(PORT) || rte_eth_dev_info_get(PORT, &info) != 0) {
		fprintf(stderr, "vhost: no port; give one --vdev\n");
		return -1;
	}
	conf.rxmode.offloads = info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER;
	conf.txmode.offloads = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
	if (rte_eth_dev_configure(PORT, 1, 1, &conf) != 0 ||
	    rte_eth_rx_queue_setup(PORT, 0, options.ring, SOCKET_ID_ANY, NULL, pool) != 0 ||
	    rte_eth_tx_queue_setup(PORT, 0, options.ring, SOCKET_ID_ANY, NULL) != 0 || rte_eth_dev_start(PORT) != 0) {
		fprintf(stderr, "vhost: the port does not start\n");
		return -1;
	}
	return 0;
}

/* DPDK's vhost library waits for events of its sockets by poll(2), a second at a time, and does not look up when a new
 * one comes to listen: whoever connects then is kept waiting. It does look up when it has connected somewhere itself. */
static void nudge(void)
{
	static const struct rte_vhost_device_ops nothing;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct rte_eth_dev_info info;
	int fd;

	if (rte_eth_dev_info_get(PORT, &info) != 0 || strcmp(info.driver_name, "net_vhost") != 0)
		return;
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/spinwake-nudge-%d", getpid());
	unlink(address.sun_path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, 1) != 0 ||
	    rte_vhost_driver_register(address.sun_path, RTE_VHOST_USER_CLIENT | RTE_VHOST_USER_NO_RECONNECT) != 0 ||
	    rte_vhost_driver_callback_register(address.sun_path, &nothing) != 0 ||
	    rte_vhost_driver_start(address.sun_path) != 0)
		fprintf(stderr, "vhost: cannot wake DPDK's vhost library; it may take a second more\n");
	unlink(address.sun_path);
}

static int await_link(void)
{
	uint64_t limit = rte_rdtsc() + options.patience_s * rte_get_tsc_hz();
	struct rte_eth_link link = {0};

	/* Asleep in between: the driver's own threads connect. */
	for (; !ended && rte_rdtsc() < limit; rte_delay_us_sleep(100)) {
		if (rte_eth_link_get_nowait(PORT, &link) == 0 && link.link_status == RTE_ETH_LINK_UP)
			return 0;
	}
	if (!ended)
		fprintf(stderr, "vhost: nobody connected within %.0f s\n", options.patience_s);
	return -1;
}

static int read_options(int argc, char **argv)
{
	static const struct option known[] = {
		{"gap-us", required_argument, NULL, 'g'},  {"seconds", required_argument, NULL, 's'},
		{"frames", required_argument, NULL, 'f'},  {"size", required_argument, NULL, 'l'},
		{"ring", required_argument, NULL, 'r'},	   {"addresses", required_argument, NULL, 'a'},
		{"patience", required_argument, NULL, 'p'}, {"settle", required_argument, NULL, 't'},
		{NULL, 0, NULL, 0},
	};
	int letter;

	optind = 1;
	while ((letter = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (letter) {
		case 'g': options.gap_us = atof(optarg); break;
		case 's': options.seconds = atof(optarg); break;
		case 'f': options.frames = atoi(optarg); break;
		case 'r': options.ring = atoi(optarg); break;
		case 't': options.settle_s = atof(optarg); break;
		case 'p': options.patience_s = atof(optarg); break;
		case 'l':
			if (sscanf(optarg, "%u-%u", &options.shortest, &options.longest) == 1)
				options.longest = options.shortest;
			break;
		case 'a':
			options.addresses = strcmp(optarg, "swapped") == 0 ? SWAPPED : strcmp(optarg, "any") == 0 ? ANY : SAME;
			break;
		default: return -1;
		}
	}
	if (optind + 1 != argc)
		return -1;
	options.roundtrip = strcmp(argv[optind], "roundtrip") == 0;
	if (!options.roundtrip && strcmp(argv[optind], "circle") != 0)
		return -1;
	return options.shortest >= SHORTEST && options.longest <= LONGEST && options.shortest <= options.longest &&
	       options.frames > 0 && options.frames < WINDOW ? 0 : -1;
}

static int by_size(const void *a, const void *b)
{
	uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

	return (left > right) - (left < right);
}

/* The median of the windows' 99th percentiles, in microseconds; of no whole window, zero. Leaves the times out of order. */
static double window_p99_us(void)
{
	size_t windows = measured / WINDOW_TRIPS;
	uint32_t *p99s = calloc(RTE_MAX(windows, (size_t)1), sizeof(*p99s)), median;

	if (p99s == NULL)
		return 0;
	for (size_t i = 0; i < windows; i++) {
		uint32_t *window = latencies + i * WINDOW_TRIPS;

		qsort(window, WINDOW_TRIPS, sizeof(*window), by_size);
		p99s[i] = window[WINDOW_TRIPS * 99 / 100];
	}
	qsort(p99s, windows, sizeof(*p99s), by_size);
	median = p99s[windows / 2];
	free(p99s);
	return median / 1e3;
}

static void report(double seconds)
{
	static const struct { const char *name; double share; } points[] = {
		{"p50_us", 0.5}, {"p90_us", 0.9}, {"p99_us", 0.99}, {"p999_us", 0.999}, {"max_us", 1},
	};

	printf("seconds %.3f\nrate %.0f\n", seconds, counts.received / seconds);
	printf("sent %lu\nreceived %lu\nlost %lu\n", counts.sent, counts.received, away + counts.given_up);
	printf("corrupted %lu\nstrange %lu\nreordered %lu\n", counts.corrupted, counts.strange, counts.reordered);
	printf("stalls %lu\nexcluded %lu\n", counts.stalls, counts.excluded);
	if (!options.roundtrip || measured == 0)
		return;
	printf("window_p99_us %.3f\n", window_p99_us());
	qsort(latencies, measured, sizeof(*latencies), by_size);
	for (unsigned i = 0; i < RTE_DIM(points); i++)
		printf("%s %.3f\n", points[i].name, latencies[(size_t)(points[i].share * (measured - 1))] / 1e3);
}

int main(int argc, char **argv)
{
	int used = rte_eal_init(argc, argv);

	if (used < 0)
		return 2;
	if (read_options(argc - used, argv + used) != 0) {
		fprintf(stderr, "usage: vhost EAL-OPTIONS -- circle|roundtrip [--frames N] [--gap-us G] [--size N[-M]] [--seconds S]\n"
				"             [--ring N] [--addresses same|swapped|any] [--patience S] [--settle S]\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGINT, end);
	signal(SIGTERM, end);
	stall_cycles = STALL_US * rte_get_tsc_hz() / 1000000;
	room = options.roundtrip ? (size_t)(2e6 * options.seconds / options.gap_us) + 1024 : 0;
	latencies = calloc(RTE_MAX(room, (size_t)1), sizeof(*latencies));
	pool = rte_pktmbuf_pool_create("frames", 16383, 256, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	if (pool == NULL || latencies == NULL) {
		fprintf(stderr, "vhost: no memory for frames\n");
		return 2;
	}
	uint64_t began = rte_rdtsc();
	/* Frames of a life before are no frames of this one. */
	next_number = last_number = began << 8;
	if (open_port() != 0)
		return 2;
	nudge();
	printf("listening 1\n");
	if (await_link() != 0)
		return 2;
	printf("up_us %.0f\n", (double)(rte_rdtsc() - began) * 1e6 / rte_get_tsc_hz());
	if (options.settle_s > 0) {
		run(began, options.settle_s);
		forget();
		printf("settled 1\n");
	}
	double seconds = run(began, options.seconds);
	drain(DRAIN_S);
	report(seconds);
	rte_eth_dev_stop(PORT);
	rte_eth_dev_close(PORT);
	rte_eal_cleanup();
	return counts.received > 0 && away + counts.given_up + counts.corrupted + counts.strange == 0 ? 0 : 1;
}
