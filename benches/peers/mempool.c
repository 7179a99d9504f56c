/* Cycles an element of DPDK's pools, taking and giving back in bursts of 32: the raw mempool (what
 * mempool_perf_autotest does with a cache, in a program short enough to alternate with), and packet buffers,
 * which are ready to be filled when they are taken, as frames are. */
#include <stdio.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

#define BURST 32
#define TURNS 20000
#define ROUNDS 50

static double mempool(struct rte_mempool *pool)
{
	void *objects[BURST];
	uint64_t best = UINT64_MAX;

	for (int round = 0; round < ROUNDS; round++) {
		uint64_t start = rte_rdtsc();

		for (int turn = 0; turn < TURNS; turn++) {
			if (rte_mempool_get_bulk(pool, objects, BURST) != 0)
				return -1;
			rte_mempool_put_bulk(pool, objects, BURST);
		}
		uint64_t cycles = rte_rdtsc() - start;
		best = RTE_MIN(best, cycles);
	}
	return (double)best / ((double)TURNS * BURST);
}

static double mbufs(struct rte_mempool *pool)
{
	struct rte_mbuf *frames[BURST];
	uint64_t best = UINT64_MAX;

	for (int round = 0; round < ROUNDS; round++) {
		uint64_t start = rte_rdtsc();

		for (int turn = 0; turn < TURNS; turn++) {
			if (rte_pktmbuf_alloc_bulk(pool, frames, BURST) != 0)
				return -1;
			rte_pktmbuf_free_bulk(frames, BURST);
		}
		uint64_t cycles = rte_rdtsc() - start;
		best = RTE_MIN(best, cycles);
	}
	return (double)best / ((double)TURNS * BURST);
}

int main(int argc, char **argv)
{
	if (rte_eal_init(argc, argv) < 0)
		return 2;
	struct rte_mempool *plain = rte_mempool_create("plain", 8191, 2176, RTE_MEMPOOL_CACHE_MAX_SIZE, 0, NULL, NULL,
						       NULL, NULL, SOCKET_ID_ANY, 0);
	struct rte_mempool *packets = rte_pktmbuf_pool_create("packets", 8191, RTE_MEMPOOL_CACHE_MAX_SIZE, 0,
							      RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);

	if (plain == NULL || packets == NULL)
		return 2;
	printf("mempool %.3f\n", mempool(plain));
	printf("mbuf %.3f\n", mbufs(packets));
	return 0;
}
