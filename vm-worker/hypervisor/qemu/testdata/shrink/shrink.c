// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * Has QEMU's own hash table shrunk by preload/zygote/translations.c: preloaded into a QEMU that only tells its version, it
 * runs when that ends. It fills the table as a zygote does, shrinks it, goes on as a child does, and throws all away.
 */
#include "translations.c"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum {
	ROOMY = 1 << 15,        /* CODE_GEN_HTABLE_SIZE */
	BEFORE = 93000,         /* translated by a zygote */
	CROWD = 200,            /* of them in one chain: more than are arranged */
	CHILDS = 2100,
	ANEW = 150000,
	ALL = BEFORE + CHILDS + ANEW,
	PAGE = 4096,
	ENDS = 2 * (BUCKETS * BUCKET / PAGE + 1), /* pages with the last buckets of the chains, some of which are the first */
};

static char blocks[ALL]; /* only their addresses count */

static bool (*qemu_insert)(void *, void *, uint32_t, void **);
static bool (*qemu_remove)(void *, const void *, uint32_t);
static void *(*qemu_lookup)(void *, const void *, uint32_t);

#define MUST(what) do { if (!(what)) { printf("line %d: not %s\n", __LINE__, #what); fflush(stdout); _exit(1); } } while (0)

static bool same(const void *a, const void *b) { return a == b; }

static uint32_t hash_of(size_t i)
{
	uint32_t h = (i + 1) * 2654435761u;

	h = (h ^ h >> 15) * 2246822519u;
	return i < CROWD ? h << 13 | 77 : h ^ h >> 13;
}

/* Those of one kind are gone, as code that was written to. */
static bool gone(size_t i) { return i % 10 == 3; }

static void insert_all(void *t, size_t from, size_t to)
{
	size_t n = to - from, step = 7919; /* no multiple: not in the order of addresses */

	MUST(n % step != 0);
	for (size_t i = 0; i < n; i++) {
		size_t at = from + i * step % n;

		MUST(qemu_insert(t, &blocks[at], hash_of(at), NULL));
	}
	for (size_t i = from; i < to; i++)
		if (gone(i))
			MUST(qemu_remove(t, &blocks[i], hash_of(i)));
}

static void expect(void *t, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		MUST(qemu_lookup(t, &blocks[i], hash_of(i)) == (gone(i) ? NULL : &blocks[i]));
}

static struct map *map_of(void *t)
{
	struct map *map;

	memcpy(&map, t, sizeof map);
	return map;
}

static unsigned mode_of(char *t)
{
	unsigned mode;

	memcpy(&mode, t + mode_at, sizeof mode);
	return mode;
}

/* How many pages hold what is given, of which each has its page once. */
static size_t count_pages(uintptr_t *pages, size_t n)
{
	size_t different = 0;

	for (size_t i = 0; i < n; i++) {
		size_t j = 0;

		while (j < different && pages[j] != pages[i] / PAGE)
			j++;
		if (j == different)
			pages[different++] = pages[i] / PAGE;
	}
	return different;
}

/* Every chain has what it should, the oldest first and without a gap, and ends where all end. */
static void look_at_chains(struct map *map)
{
	static uintptr_t ends[BUCKETS];
	size_t live = 0, all = 0, crowded = 0, backward = 0;

	for (size_t i = 0; i < map->count; i++) {
		struct bucket *b = &map->buckets[i];
		size_t n = 0;
		void *last = NULL;
		bool crowd = i == 77;

		for (;; b = b->next) {
			for (int j = 0; j < ENTRIES; j++) {
				if (b->pointers[j] == NULL) {
					MUST(b->next == NULL && b->hashes[j] == 0);
					continue;
				}
				MUST((b->hashes[j] & (map->count - 1)) == i);
				MUST(hash_of((char *)b->pointers[j] - blocks) == b->hashes[j]);
				MUST(crowd || b->pointers[j] > last);
				backward += b->pointers[j] < last;
				last = b->pointers[j];
				n++;
			}
			if (b->next == NULL)
				break;
		}
		MUST(n == 0 || b->pointers[0] != NULL);
		crowded += crowd ? n : 0;
		if (!crowd)
			ends[i] = (uintptr_t)b;
		else
			ends[i] = ends[i - 1];
		live += n;
	}
	for (size_t i = 0; i < BEFORE; i++)
		all += !gone(i);
	MUST(live == all && crowded > 32 * ENTRIES && backward > 0); /* the longest was not touched */
	MUST(count_pages(ends, map->count) <= ENDS);
}

/* Where in the table the new blocks are. */
static void look_at_childs(struct map *map)
{
	static uintptr_t places[CHILDS];
	size_t n = 0;

	for (size_t i = BEFORE; i < BEFORE + CHILDS; i++) {
		struct bucket *b = &map->buckets[hash_of(i) & (map->count - 1)];

		if (gone(i))
			continue;
		for (; b != NULL; b = b->next)
			for (int j = 0; j < ENTRIES; j++)
				if (b->pointers[j] == &blocks[i])
					places[n++] = (uintptr_t)b;
	}
	MUST(n == CHILDS - CHILDS / 10);
	MUST(count_pages(places, n) <= ENDS + CHILDS * BUCKET / PAGE + 1);
}

/* A table of another QEMU, whose buckets have the pointers first, and one that has no second bucket. */
static struct other { void *pointers[ENTRIES]; uint32_t hashes[ENTRIES + 2]; void *next; } other_bucket;
static struct map other_map = { .buckets = (void *)&other_bucket, .count = 1 };
static size_t others;

static void other_init(void *t, void *cmp, size_t n, unsigned mode)
{
	struct map *map = &other_map;

	(void)cmp, (void)n, (void)mode;
	memcpy(t, &map, sizeof map);
	memset(&other_bucket, 0, sizeof other_bucket);
	others = 0;
}

static void other_destroy(void *t) { (void)t; }

static bool pointers_first(void *t, void *p, uint32_t hash, void **existing)
{
	(void)t, (void)existing;
	other_bucket.hashes[others % ENTRIES] = hash;
	other_bucket.pointers[others++ % ENTRIES] = p;
	return true;
}

static bool never_continued(void *t, void *p, uint32_t hash, void **existing)
{
	struct bucket *b = other_map.buckets;

	(void)t, (void)existing;
	b->hashes[others % ENTRIES] = hash;
	b->pointers[others++ % ENTRIES] = p;
	return true;
}

__attribute__((destructor)) static void test(void)
{
	char *context = dlsym(RTLD_DEFAULT, "tb_ctx");
	void (*init)(void *, void *, size_t, unsigned);
	bool (*reset_size)(void *, size_t);
	void (*drain)(void);
	struct map *map;
	unsigned count;

	*(void **)&init = dlsym(RTLD_DEFAULT, "qht_init");
	*(void **)&reset_size = dlsym(RTLD_DEFAULT, "qht_reset_size");
	*(void **)&qemu_insert = dlsym(RTLD_DEFAULT, "qht_insert");
	*(void **)&qemu_remove = dlsym(RTLD_DEFAULT, "qht_remove");
	*(void **)&qemu_lookup = dlsym(RTLD_DEFAULT, "qht_lookup");
	*(void **)&drain = dlsym(RTLD_DEFAULT, "drain_call_rcu");
	if (context == NULL || init == NULL || reset_size == NULL || qemu_insert == NULL || qemu_remove == NULL || qemu_lookup == NULL || drain == NULL) {
		puts("not exported");
		fflush(stdout);
		_exit(0);
	}
	MUST(!known(other_init, other_destroy, pointers_first));
	MUST(!known(other_init, other_destroy, never_continued));

	init(context, same, ROOMY, AUTO_RESIZE);
	insert_all(context, 0, BEFORE);
	MUST(map_of(context)->count > BUCKETS);
	shrink_translation_table();
	map = map_of(context);
	MUST(table == context && mode_of(context) == 0 && map->count == BUCKETS);
	look_at_chains(map);
	expect(context, 0, BEFORE);
	drain(); /* which frees the former table, made before there was a place for buckets */
	expect(context, 0, BEFORE);
	shrink_translation_table(); /* a second order */
	MUST(table == context && map_of(context) == map);

	/* As a child. */
	insert_all(context, BEFORE, BEFORE + CHILDS);
	watch_translations();
	MUST(map_of(context) == map && mode_of(context) == 0);
	look_at_childs(map);
	expect(context, 0, BEFORE + CHILDS);

	/* All is thrown away, as do_tb_flush does it. */
	MUST(!reset_size(context, ROOMY) || map_of(context)->count == BUCKETS);
	memcpy(&count, context + mode_at + 2 * sizeof count, sizeof count);
	count++;
	memcpy(context + mode_at + 2 * sizeof count, &count, sizeof count);
	watch_translations();
	MUST(mode_of(context) == AUTO_RESIZE && table == NULL);
	for (size_t i = 0; i < BEFORE + CHILDS; i++)
		MUST(qemu_lookup(context, &blocks[i], hash_of(i)) == NULL);
	insert_all(context, BEFORE + CHILDS, ALL);
	MUST(map_of(context)->count > BUCKETS);
	expect(context, BEFORE + CHILDS, ALL);
	drain(); /* which frees the table with all the chains that were arranged */
	expect(context, BEFORE + CHILDS, ALL);
	puts("as it should be");
	fflush(stdout);
	_exit(0);
}
