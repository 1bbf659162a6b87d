// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * QEMU finds translated code by a hash table of 64 bytes a bucket, which doubles when one in eight buckets has
 * overflowed. What a child translates changes a bucket anywhere in the table for each block, so all of its pages
 * become the child's own before long, and a page more for each bucket that is continued elsewhere. So the zygote makes
 * the table small, and its chains such that the ends of all, where what is new is written, lie side by side; and has it stay so.
 * A child that throws all translations away, as it has used the whole buffer up, begins anew with a table that grows as ever.
 */
#include "zygote.h"

#include <dlfcn.h>
#include <string.h>

/* util/qht.c */
enum { ENTRIES = 4 };

struct bucket {
	uint32_t lock, sequence, hashes[ENTRIES];
	void *pointers[ENTRIES];
	struct bucket *next; /* when this one is full */
};

struct map {
	void *rcu[2];
	struct bucket *buckets;
	size_t count;
};

_Static_assert(sizeof(struct bucket) == BUCKET, "a bucket is as large as a line of the processor's cache");

enum {
	BUCKETS = 1 << 13, /* which a third as many blocks would fill */
	AUTO_RESIZE = 1,  /* QHT_MODE_AUTO_RESIZE, include/qemu/qht.h */
	ROOM = 512,       /* more than a struct qht */
};

static bool never(const void *a, const void *b)
{
	(void)a, (void)b;
	return false;
}

static char *table;     /* of the child; NULL: it is as QEMU has it */
static long mode_at;
static unsigned flushes;

/* Where a table holds its mode: the one word in which two that are equal otherwise differ so. */
static long find_mode(void (*init)(void *, void *, size_t, unsigned), void (*destroy)(void *))
{
	static _Alignas(16) char with[ROOM], without[ROOM];
	unsigned a, b;
	long found = -1;

	init(with, never, 4, AUTO_RESIZE);
	init(without, never, 4, 0);
	for (long at = 0; at < ROOM && found < 0; at += sizeof a) {
		memcpy(&a, with + at, sizeof a);
		memcpy(&b, without + at, sizeof b);
		if (a == AUTO_RESIZE && b == 0)
			found = at;
	}
	destroy(with);
	destroy(without);
	return found;
}

/* Whether tables are made as it is written above: of one whose only bucket is continued. */
static bool known(void (*init)(void *, void *, size_t, unsigned), void (*destroy)(void *), bool (*insert)(void *, void *, uint32_t, void **))
{
	static _Alignas(16) char table[ROOM];
	static char blocks[2 * ENTRIES - 1];
	struct map *map;
	struct bucket *b;
	bool same;

	init(table, never, ENTRIES, 0);
	for (size_t i = 0; i < sizeof blocks; i++)
		insert(table, &blocks[i], i + 1, NULL);
	memcpy(&map, table, sizeof map);
	same = map->count == 1;
	b = map->buckets;
	for (size_t i = 0; same && i < sizeof blocks; i++) {
		if (i == ENTRIES)
			b = b->next;
		same = b != NULL && b->hashes[i % ENTRIES] == i + 1 && b->pointers[i % ENTRIES] == &blocks[i];
	}
	same = same && b->hashes[ENTRIES - 1] == 0 && b->pointers[ENTRIES - 1] == NULL && b->next == NULL;
	destroy(table);
	return same;
}

/*
 * Makes a chain anew: the oldest blocks first, which are what runs most often, in buckets one after the other, and the last bucket
 * where it is told to. A chain that is longer than any should be stays as it is.
 */
static void arrange(struct bucket *first, struct bucket *last)
{
	enum { MOST = 32 * ENTRIES };
	static struct { void *pointer; uint32_t hash; } all[MOST];
	struct bucket *b, *between;
	size_t n = 0, buckets;

	for (b = first; b != NULL; b = b->next)
		for (int i = 0; i < ENTRIES && b->pointers[i] != NULL; i++) {
			size_t at = n++;

			if (n > MOST)
				return;
			for (; at > 0 && all[at - 1].pointer > b->pointers[i]; at--)
				all[at] = all[at - 1];
			all[at].pointer = b->pointers[i];
			all[at].hash = b->hashes[i];
		}
	buckets = (n + ENTRIES - 1) / ENTRIES;
	between = buckets > 2 ? take_buckets((buckets - 2) * sizeof *between) : NULL;
	if (buckets > 2 && between == NULL)
		return;
	b = first;
	for (size_t i = 0; i < n; i++) {
		if (i > 0 && i % ENTRIES == 0)
			b = b->next = i / ENTRIES == buckets - 1 ? last : between++;
		b->pointers[i % ENTRIES] = all[i].pointer;
		b->hashes[i % ENTRIES] = all[i].hash;
	}
}

static void arrange_all(void)
{
	struct map *map;
	struct bucket *last;

	memcpy(&map, table, sizeof map);
	last = take_buckets(map->count * sizeof *last);
	for (size_t i = 0; last != NULL && i < map->count; i++)
		arrange(&map->buckets[i], &last[i]);
}

/* What follows the table in QEMU's TBContext: how often all was thrown away. */
static unsigned count_flushes(void)
{
	unsigned count;

	memcpy(&count, table + mode_at + 2 * sizeof count, sizeof count);
	return count;
}

static void set_mode(unsigned mode) { memcpy(table + mode_at, &mode, sizeof mode); }

/* To be called with QEMU's lock held, when no processor runs. A QEMU that is not made so keeps its table. */
void shrink_translation_table(void)
{
	void (*init)(void *, void *, size_t, unsigned), (*destroy)(void *);
	bool (*resize)(void *, size_t), (*insert)(void *, void *, uint32_t, void **);
	char *context = dlsym(RTLD_DEFAULT, "tb_ctx"); /* which begins with the table */
	unsigned mode;

	*(void **)&init = dlsym(RTLD_DEFAULT, "qht_init");
	*(void **)&destroy = dlsym(RTLD_DEFAULT, "qht_destroy");
	*(void **)&resize = dlsym(RTLD_DEFAULT, "qht_resize");
	*(void **)&insert = dlsym(RTLD_DEFAULT, "qht_insert");
	if (context == NULL || init == NULL || destroy == NULL || resize == NULL || insert == NULL)
		return;
	if ((mode_at = find_mode(init, destroy)) < 0 || !known(init, destroy, insert))
		return;
	memcpy(&mode, context + mode_at, sizeof mode);
	if (mode != AUTO_RESIZE || !open_buckets())
		return;
	table = context;
	set_mode(0);
	resize(table, BUCKETS * ENTRIES);
	arrange_all();
	flushes = count_flushes();
}

/* Called by a child's main loop. */
void watch_translations(void)
{
	if (table == NULL || count_flushes() == flushes)
		return;
	set_mode(AUTO_RESIZE);
	table = NULL;
}
