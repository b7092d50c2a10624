/* SPDX-License-Identifier: Apache-2.0
 * model/train/tasks.c - pass keys, look-ups, copies and lists among prose.
 *
 * A task is a list of items: facts, which say something, then questions, which
 * ask for it and are answered. Natural text from the shards fills the gaps
 * between them, each gap of random length, so that answers lie at all distances
 * from their facts. Several facts and questions stand in one window: an answer
 * is a few tokens among hundreds, and what is rarely asked is hardly learnt.
 *
 * Repeats have no items: passages, and parts of them again, fill the window.
 *
 * All tokens of a fact but copied prose are unwanted: random digits teach
 * nothing but noise. Of a question only the answer is wanted.
 *
 * Invariant: the result has exactly the number of tokens that was asked for;
 * questions come after all facts; every answer can be read off a fact.
 * Threads: any. */
#include "tasks.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_ITEMS      (2 * WINDOW_MAX_ANSWERS)
#define MAX_FACTS      WINDOW_MAX_ANSWERS
#define MAX_LINE       1024
#define MAX_LOOKUPS    10
#define SHORTEST_GAP   12  /* tokens of prose that are worth a gap */
#define SENTENCE_REACH 160 /* tokens to look for the end of a sentence */

static const char *const nouns[] = {"apple", "arm", "arrow", "bag", "ball",
    "bank", "barn", "basket", "bath", "beach", "bean", "bear", "bed", "bell",
    "belt", "bench", "bird", "board", "boat", "bone", "book", "boot", "bottle",
    "bowl", "box", "boy", "branch", "bread", "brick", "bridge", "brother",
    "brush", "bucket", "button", "cake", "camp", "candle", "card", "carpet",
    "cart", "castle", "cat", "chain", "chair", "chalk", "cheese", "chest",
    "child", "church", "circle", "clock", "cloth", "cloud", "coat", "coin",
    "corn", "cottage", "cow", "crown", "cup", "curtain", "desk", "dinner",
    "doctor", "dog", "door", "dress", "drum", "duck", "dust", "eagle", "ear",
    "earth", "egg", "engine", "eye", "face", "farm", "father", "feather",
    "fence", "field", "finger", "fire", "fish", "flag", "floor", "flour",
    "flower", "foot", "forest", "fork", "fox", "friend", "frog", "fruit",
    "garden", "gate", "girl", "glass", "goat", "gold", "grass", "guest", "gun",
    "hair", "hammer", "hand", "harbour", "hat", "heart", "hill", "honey",
    "hook", "horn", "horse", "house", "ink", "iron", "island", "jar", "jewel",
    "judge", "key", "king", "kitchen", "knee", "knife", "knot", "ladder",
    "lake", "lamp", "leaf", "leather", "letter", "library", "lion", "lock",
    "machine", "map", "market", "mill", "mirror", "money", "monkey", "moon",
    "mother", "mountain", "mouse", "mouth", "nail", "neck", "needle", "nest",
    "net", "nose", "nut", "oak", "office", "onion", "orange", "oven", "paint",
    "palace", "paper", "pear", "pen", "pencil", "picture", "pig", "pin", "pipe",
    "plant", "plate", "pocket", "potato", "prince", "queen", "rabbit", "rain",
    "ring", "river", "road", "rock", "roof", "root", "rope", "rose", "sail",
    "salt", "sand", "school", "seed", "sheep", "ship", "shirt", "shoe", "silk",
    "silver", "sister", "snake", "snow", "soap", "soldier", "spade", "spoon",
    "stamp", "star", "stone", "storm", "street", "sugar", "sun", "table",
    "tail", "temple", "tent", "thread", "throat", "ticket", "tiger", "tooth",
    "tower", "train", "tree", "umbrella", "valley", "village", "violin",
    "wagon", "wall", "watch", "water", "wheel", "whip", "window", "wine",
    "wing", "wolf", "wood", "wool"};

#define N_NOUNS (sizeof nouns / sizeof *nouns)

static const char *const colours[] = {"red", "blue", "green", "black", "white",
    "yellow", "brown", "grey", "old", "new", "small", "great", "long", "heavy",
    "golden", "broken"};

#define N_COLOURS (sizeof colours / sizeof *colours)

struct tokens {
    mb_token_id *ids;
    uint8_t *wanted;
    size_t n;
    size_t room;
};

struct item {
    size_t first; /* tokens of the pool */
    size_t n;
    size_t answer; /* of a question: where in it the answer begins */
    size_t fact;   /* of a question: item that answers it */
    bool follows;  /* no prose between the item before and this one */
};

struct task {
    const struct task_world *world;
    struct mb_rng *rng;
    struct mb_arena *arena;
    struct mb_buffer encoded; /* mb_tokens of one text */
    struct tokens pool;
    struct item items[MAX_ITEMS];
    size_t n_items;
    size_t n_facts; /* the first of the items */
    size_t limit;   /* tokens that all items may have */
    mb_status status;
};

static size_t
below(struct task *t, size_t n)
{
    return (size_t)mb_rng_below(t->rng, n);
}

/* In [low, high]. */
static size_t
between(struct task *t, size_t low, size_t high)
{
    return low + below(t, high - low + 1);
}

static bool
chance(struct task *t, double p)
{
    return mb_rng_double(t->rng) < p;
}

/* ---- tokens ---- */

static void
add_token(struct task *t, mb_token_id id, uint8_t wanted)
{
    struct tokens *p = &t->pool;
    if (p->n == p->room) {
        t->status = MB_ERR_TOO_LARGE;
        return;
    }
    p->ids[p->n] = id;
    p->wanted[p->n++] = wanted;
}

/* Text as it would be encoded after a space, or, if it begins with a line's
 * end, after anything. */
static void
add_text(struct task *t, const char *text, uint8_t wanted)
{
    mb_buffer_clear(&t->encoded);
    if (t->status == MB_OK)
        t->status = mb_tokenizer_encode(
            t->world->tok, NULL, mb_slice_cstr(text), &t->encoded, NULL);
    if (t->status != MB_OK)
        return;
    const struct mb_token *tokens = (const struct mb_token *)t->encoded.data;
    size_t n = t->encoded.size / sizeof *tokens;
    for (size_t i = 0; i < n; i++) {
        bool is_bare = (t->world->marks[tokens[i].id] & TASK_BARE_SPACE) != 0;
        if (i == 0 && is_bare && text[0] == '\n')
            continue;
        add_token(t, tokens[i].id, wanted);
    }
}

static void
begin_item(struct task *t, bool follows)
{
    MB_ASSERT(t->n_items < MAX_ITEMS);
    t->items[t->n_items] = (struct item){t->pool.n, 0, 0, 0, follows};
}

/* The question that is being made is answered by a fact, from here on. */
static void
begin_answer(struct task *t, size_t fact)
{
    struct item *item = &t->items[t->n_items];
    item->fact = fact;
    item->answer = t->pool.n - item->first;
}

static void
end_item(struct task *t)
{
    struct item *item = &t->items[t->n_items++];
    item->n = t->pool.n - item->first;
}

/* Is there room for `n` tokens more, beside what is kept for others? */
static bool
has_room(const struct task *t, size_t n)
{
    return t->status == MB_OK && t->pool.n + n <= t->limit;
}

/* ---- prose ---- */

void
task_mark(const struct mb_tokenizer *tok, uint8_t *marks)
{
    static const char space[] = "\xe2\x96\x81";
    for (size_t i = 0; i < mb_tokenizer_n_vocab(tok); i++) {
        struct mb_slice p = mb_tokenizer_piece(tok, (mb_token_id)i);
        size_t n = p.size;
        marks[i] = 0;
        if (n >= 3 && memcmp(p.data, space, 3) == 0)
            marks[i] |= n == 3 ? TASK_BARE_SPACE : TASK_STARTS_WORD;
        if (mb_slice_equal(p, mb_slice_cstr("<0x0A>")))
            marks[i] |= TASK_STARTS_WORD;
        if (n >= 2 && (p.data[n - 1] == '"' || p.data[n - 1] == ')'))
            n--;
        if (n >= 1 && memchr(".!?", p.data[n - 1], 3) != NULL)
            marks[i] |= TASK_ENDS_SENTENCE;
    }
}

static bool
is_sentence_end(const struct task_world *w, mb_token_id id, mb_token_id next)
{
    return (w->marks[id] & TASK_ENDS_SENTENCE) != 0 &&
           (w->marks[next] & TASK_STARTS_WORD) != 0;
}

/* Up to n tokens of natural text from the beginning of a sentence (if one is
 * near), in memory of the arena. */
static size_t
draw_prose(struct task *t, size_t n, mb_token_id **out)
{
    const struct task_world *w = t->world;
    double u = mb_rng_double(t->rng);
    size_t source = 0;
    while (source + 1 < w->n_sources && u >= w->share[source])
        source++;
    const struct shard *s = w->sources[source].shard;
    uint64_t all = shard_n_tokens(s);
    // What is no prose of a document is left out on the way.
    size_t want = n + SENTENCE_REACH + 16;
    size_t got = all < want ? (size_t)all : want;
    mb_token_id *ids = mb_arena_alloc(t->arena, got * sizeof *ids);
    if (!ids) {
        t->status = MB_ERR_NOMEM;
        return 0;
    }
    shard_read(s, mb_rng_below(t->rng, all - got + 1), got, ids);
    size_t kept = 0;
    for (size_t i = 0; i < got; i++) {
        if (ids[i] != w->bos && ids[i] != w->eos)
            ids[kept++] = ids[i];
    }
    size_t first = 0;
    for (size_t i = 0; i + 1 < kept && i < SENTENCE_REACH; i++) {
        if (is_sentence_end(w, ids[i], ids[i + 1])) {
            first = i + 1;
            break;
        }
    }
    *out = ids + first;
    return kept - first < n ? kept - first : n;
}

/* The longest part of n tokens of prose that ends with a sentence, if that is
 * at least half of them. */
static size_t
to_sentence_end(const struct task_world *w, const mb_token_id *ids, size_t n)
{
    for (size_t i = n; i > n / 2 && i >= 2; i--) {
        if (is_sentence_end(w, ids[i - 2], ids[i - 1]))
            return i - 1;
    }
    return n;
}

/* ---- words ---- */

static void
draw_digits(struct task *t, size_t n, char *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (char)('0' + below(t, 10));
    if (out[0] == '0')
        out[0] = '7';
    out[n] = '\0';
}

static void
draw_code(struct task *t, size_t n, char *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = "0123456789abcdef"[below(t, 16)];
    out[n] = '\0';
}

/* The first n of a shuffled 0 .. N_NOUNS - 1: different nouns. */
static void
draw_nouns(struct task *t, size_t n, uint16_t order[N_NOUNS])
{
    for (size_t i = 0; i < N_NOUNS; i++)
        order[i] = (uint16_t)i;
    for (size_t i = 0; i < n; i++) {
        size_t j = between(t, i, N_NOUNS - 1);
        uint16_t kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

static void
shuffle(struct task *t, size_t *order, size_t n)
{
    for (size_t i = 0; i < n; i++)
        order[i] = i;
    for (size_t i = n; i > 1; i--) {
        size_t j = below(t, i);
        size_t kept = order[i - 1];
        order[i - 1] = order[j];
        order[j] = kept;
    }
}

/* ---- pass keys ---- */

static void
make_passkey(struct task *t)
{
    char key[MAX_FACTS][8];
    char line[MAX_LINE];
    uint16_t owner[N_NOUNS];
    size_t order[MAX_FACTS];
    size_t n = chance(t, 0.4) ? 1 : between(t, 2, 8);
    size_t made = 0;
    bool has_owner = n > 1;
    draw_nouns(t, n, owner);
    for (; made < n && (made == 0 || has_room(t, (made + 2) * 40)); made++) {
        const char *noun = nouns[owner[made]];
        draw_digits(t, 5, key[made]);
        begin_item(t, false);
        if (has_owner)
            (void)snprintf(line, sizeof line,
                "The pass key of the %s is %s. Remember it.", noun, key[made]);
        else
            (void)snprintf(line, sizeof line,
                "The pass key is %s. Remember it.", key[made]);
        add_text(t, line, TASK_NOT_WANTED);
        if (!has_owner) {
            add_text(t, key[0], TASK_ANSWER);
            add_text(t, "is the pass key.", TASK_PROSE);
        }
        end_item(t);
    }
    t->n_facts = t->n_items;
    shuffle(t, order, made);
    bool together = chance(t, 0.5);
    for (size_t i = 0; i < made; i++) {
        const char *noun = nouns[owner[order[i]]];
        begin_item(t, i > 0 && together);
        if (has_owner)
            (void)snprintf(line, sizeof line,
                "What is the pass key of the %s? The pass key of the %s is",
                noun, noun);
        else
            (void)snprintf(
                line, sizeof line, "What is the pass key? The pass key is");
        add_text(t, line, TASK_NOT_WANTED);
        (void)snprintf(line, sizeof line, "%s.", key[order[i]]);
        begin_answer(t, order[i]);
        add_text(t, line, TASK_ANSWER);
        end_item(t);
    }
}

/* ---- look-ups ---- */

enum lookup_style { STYLE_JSON, STYLE_EQUALS, STYLE_PROSE, N_STYLES };

struct pair {
    char key[40];
    char value[24];
};

static void
draw_pair(struct task *t, bool has_code, bool has_noun_value, size_t noun,
    struct pair *p)
{
    if (has_code)
        draw_code(t, 6, p->key);
    else
        (void)snprintf(p->key, sizeof p->key, "%s %s",
            colours[below(t, N_COLOURS)], nouns[noun]);
    if (has_noun_value)
        (void)snprintf(
            p->value, sizeof p->value, "%s", nouns[below(t, N_NOUNS)]);
    else
        draw_digits(t, between(t, 2, 5), p->value);
}

/* A pair as one line: `before` up to the value, `after` from it on. */
static void
write_pair(enum lookup_style style, const struct pair *p, char before[MAX_LINE],
    char after[MAX_LINE])
{
    switch (style) {
    case STYLE_JSON:
        (void)snprintf(before, MAX_LINE, "\n\"%s\":", p->key);
        (void)snprintf(after, MAX_LINE, "\"%s\",", p->value);
        break;
    case STYLE_EQUALS:
        (void)snprintf(before, MAX_LINE, "\n%s =", p->key);
        (void)snprintf(after, MAX_LINE, "%s", p->value);
        break;
    default:
        (void)snprintf(before, MAX_LINE, "The number of the %s is", p->key);
        (void)snprintf(after, MAX_LINE, "%s.", p->value);
        break;
    }
}

static void
make_lookup(struct task *t)
{
    struct pair pairs[MAX_FACTS];
    char before[MAX_LINE];
    char after[MAX_LINE];
    uint16_t noun[N_NOUNS];
    size_t order[MAX_FACTS];
    enum lookup_style style = (enum lookup_style)below(t, N_STYLES);
    bool has_code = style != STYLE_PROSE && chance(t, 0.5);
    bool has_noun_value = style != STYLE_PROSE && chance(t, 0.4);
    bool together = chance(t, 0.7);
    size_t n = between(t, 4, 24);
    size_t made = 0;
    draw_nouns(t, n, noun);
    for (; made < n; made++) {
        // Its line, and the questions that will be asked.
        size_t asked = made + 1 < MAX_LOOKUPS ? made + 1 : MAX_LOOKUPS;
        if (made > 0 && !has_room(t, 24 + asked * 24))
            break;
        draw_pair(t, has_code, has_noun_value, noun[made], &pairs[made]);
        write_pair(style, &pairs[made], before, after);
        begin_item(t, made > 0 && together);
        add_text(t, before, TASK_NOT_WANTED);
        add_text(t, after, TASK_NOT_WANTED);
        end_item(t);
    }
    t->n_facts = t->n_items;
    shuffle(t, order, made);
    size_t asked = made < MAX_LOOKUPS ? made : MAX_LOOKUPS;
    together = chance(t, 0.6);
    for (size_t i = 0; i < asked; i++) {
        write_pair(style, &pairs[order[i]], before, after);
        begin_item(t, i > 0 && together);
        if (style == STYLE_PROSE)
            add_text(t, "What is the number?", TASK_NOT_WANTED);
        else if (i == 0 || !together)
            add_text(t, "\nLook up:", TASK_NOT_WANTED);
        add_text(t, before, TASK_NOT_WANTED);
        begin_answer(t, order[i]);
        add_text(t, after, TASK_ANSWER);
        end_item(t);
    }
}

/* ---- copies ---- */

static void
make_copy(struct task *t)
{
    static const char *const names[] = {"first", "second", "third"};
    mb_token_id *prose[3] = {NULL};
    size_t size[3] = {0};
    char line[MAX_LINE];
    size_t n = chance(t, 0.6) ? 1 : between(t, 2, 3);
    bool is_marked = n > 1 || chance(t, 0.7);
    for (size_t i = 0; i < n && t->status == MB_OK; i++) {
        size_t most = t->limit / (2 * n);
        size_t longest = most < 130 ? most : 130;
        size_t want = longest > 24 ? between(t, 20, longest) : longest;
        size[i] = draw_prose(t, want, &prose[i]);
        size[i] = to_sentence_end(t->world, prose[i], size[i]);
        begin_item(t, false);
        (void)snprintf(line, sizeof line,
            n > 1 ? "Remember the %s passage:\n" : "Remember this passage:\n",
            names[i]);
        if (is_marked)
            add_text(t, line, TASK_NOT_WANTED);
        for (size_t j = 0; j < size[i]; j++)
            add_token(t, prose[i][j], j > 0 ? TASK_PROSE : TASK_NOT_WANTED);
        end_item(t);
    }
    t->n_facts = t->n_items;
    size_t order[3];
    shuffle(t, order, n);
    for (size_t i = 0; i < n && t->status == MB_OK; i++) {
        size_t k = order[i];
        begin_item(t, false);
        (void)snprintf(line, sizeof line,
            n > 1 ? "The %s passage again:\n" : "The passage again:\n",
            names[k]);
        if (is_marked)
            add_text(t, line, TASK_NOT_WANTED);
        for (size_t j = 0; j < size[k]; j++) {
            // Without a mark nobody can know that a copy begins.
            bool is_answer = is_marked || j >= 3;
            if (j == (is_marked ? 0 : 3))
                begin_answer(t, k);
            add_token(
                t, prose[k][j], is_answer ? TASK_ANSWER : TASK_NOT_WANTED);
        }
        end_item(t);
    }
}

/* ---- lists ---- */

static void
write_list(const uint16_t *noun, size_t n, char line[MAX_LINE])
{
    size_t at = 0;
    for (size_t i = 0; i < n && at < MAX_LINE; i++) {
        int k = snprintf(line + at, MAX_LINE - at, "%s%s", nouns[noun[i]],
            i + 1 < n ? ", " : ".");
        at += k > 0 ? (size_t)k : 0;
    }
}

static void
make_list(struct task *t)
{
    uint16_t noun[N_NOUNS];
    size_t first[4];
    size_t size[4];
    size_t order[4];
    uint16_t title[4];
    char line[MAX_LINE];
    char head[MAX_LINE];
    size_t n = between(t, 1, 4);
    size_t used = n;
    size_t made = 0;
    size_t owed = 0; // tokens of the questions
    draw_nouns(t, 4 + 4 * 16, noun);
    for (; made < n; made++) {
        size_t length = between(t, 5, 16);
        // A noun and its comma take four tokens at most, and stand twice.
        owed += length * 4 + 16;
        if (made > 0 && !has_room(t, owed + length * 4 + 16))
            break;
        title[made] = noun[made];
        first[made] = used;
        size[made] = length;
        used += length;
        begin_item(t, false);
        (void)snprintf(
            head, sizeof head, "The list of the %s:", nouns[title[made]]);
        add_text(t, head, TASK_NOT_WANTED);
        write_list(noun + first[made], length, line);
        add_text(t, line, TASK_NOT_WANTED);
        end_item(t);
    }
    t->n_facts = t->n_items;
    shuffle(t, order, made);
    for (size_t i = 0; i < made; i++) {
        size_t k = order[i];
        begin_item(t, false);
        (void)snprintf(
            head, sizeof head, "The list of the %s again:", nouns[title[k]]);
        add_text(t, head, TASK_NOT_WANTED);
        write_list(noun + first[k], size[k], line);
        begin_answer(t, k);
        add_text(t, line, TASK_ANSWER);
        end_item(t);
    }
}

/* ---- putting it together ---- */

struct sink {
    mb_token_id *ids;
    uint8_t *wanted;
    size_t n;
    size_t size;
};

static void
put(struct sink *s, mb_token_id id, uint8_t wanted)
{
    if (s->n == s->size)
        return;
    s->ids[s->n] = id;
    s->wanted[s->n++] = wanted;
}

/* n tokens of prose; `exactly`, or up to the end of a sentence. The first
 * token of each stretch is unwanted: nothing tells that it comes. */
static void
put_prose(struct task *t, struct sink *s, size_t n, bool exactly)
{
    size_t end = s->n + n;
    while (s->n < end && t->status == MB_OK) {
        mb_token_id *ids = NULL;
        size_t got = draw_prose(t, end - s->n, &ids);
        size_t use = exactly ? got : to_sentence_end(t->world, ids, got);
        for (size_t i = 0; i < use; i++)
            put(s, ids[i], i > 0 ? TASK_PROSE : TASK_NOT_WANTED);
        if (!exactly)
            return;
        // A shard may end with what is no prose.
        if (use == 0)
            put(s, t->world->eos >= 0 ? t->world->eos : 0, TASK_NOT_WANTED);
    }
}

/* Lengths of the gaps before each item and after the last: `total` in all, cut
 * at random. */
static void
draw_gaps(struct task *t, size_t total, size_t gap[MAX_ITEMS + 1])
{
    double part[MAX_ITEMS + 1];
    double sum = 0;
    for (size_t i = 0; i <= t->n_items; i++) {
        bool follows = i < t->n_items && t->items[i].follows;
        part[i] = follows ? 0 : -log(1 - mb_rng_double(t->rng));
        sum += part[i];
    }
    for (size_t i = 0; i <= t->n_items; i++) {
        gap[i] = sum > 0 ? (size_t)((double)total * part[i] / sum) : 0;
        gap[i] = gap[i] < SHORTEST_GAP ? 0 : gap[i];
    }
}

/* Note an answer that stands whole in what was put so far. `at`: where the
 * items begin. */
static void
note_answer(const struct task *t, size_t i, const size_t *at,
    const struct sink *s, struct task_result *out)
{
    const struct item *item = &t->items[i];
    struct window_answer a = {
        .first = at[i] + item->answer,
        .end = at[i] + item->n,
        .distance = at[i] + item->answer - at[item->fact],
    };
    if (a.first < a.end && a.end <= s->n)
        out->answers[out->n_answers++] = a;
}

static void
assemble(struct task *t, struct sink *s, struct task_result *out)
{
    size_t at[MAX_ITEMS];
    size_t gap[MAX_ITEMS + 1];
    size_t taken = t->pool.n + 1;
    draw_gaps(t, s->size > taken ? s->size - taken : 0, gap);
    if (t->world->bos >= 0)
        put(s, t->world->bos, TASK_NOT_WANTED);
    for (size_t i = 0; i < t->n_items && t->status == MB_OK; i++) {
        const struct item *item = &t->items[i];
        put_prose(t, s, gap[i], false);
        at[i] = s->n;
        for (size_t j = item->first; j < item->first + item->n; j++)
            put(s, t->pool.ids[j], t->pool.wanted[j]);
        if (i >= t->n_facts)
            note_answer(t, i, at, s, out);
    }
    put_prose(t, s, s->size - s->n, true);
}

/* ---- repeats ---- */

#define MAX_PASSAGES    8
#define LONGEST_PASSAGE 200
#define LEAD            2 /* tokens of a repeat from which the rest follows */
#define SHORTEST_REPEAT 7

struct passage {
    const mb_token_id *ids;
    size_t n;
    size_t at; /* where it stands first */
    bool is_prose;
};

/* Words that no language model foresees. */
static size_t
draw_words(struct task *t, size_t n, mb_token_id **out)
{
    size_t n_vocab = mb_tokenizer_n_vocab(t->world->tok);
    mb_token_id *ids = mb_arena_alloc(t->arena, n * sizeof *ids);
    if (!ids) {
        t->status = MB_ERR_NOMEM;
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        size_t id = below(t, n_vocab);
        // A vocabulary of few words gives what it has.
        for (int tries = 0;
             tries < 64 && (t->world->marks[id] & TASK_STARTS_WORD) == 0;
             tries++)
            id = below(t, n_vocab);
        ids[i] = (mb_token_id)id;
    }
    *out = ids;
    return n;
}

static struct passage
draw_passage(struct task *t, size_t n)
{
    mb_token_id *ids = NULL;
    struct passage p = {.is_prose = chance(t, 0.35)};
    p.n = p.is_prose ? draw_prose(t, n, &ids) : draw_words(t, n, &ids);
    p.ids = ids;
    return p;
}

/* A part of a passage once more, its first tokens no answer: nothing tells
 * that it comes. */
static void
put_repeat(struct task *t, struct sink *s, const struct passage *p,
    struct task_result *out)
{
    size_t first = below(t, p->n - SHORTEST_REPEAT + 1);
    size_t n = between(t, SHORTEST_REPEAT, p->n - first);
    size_t start = s->n;
    for (size_t i = 0; i < n; i++)
        put(s, p->ids[first + i], i < LEAD ? TASK_NOT_WANTED : TASK_ANSWER);
    if (s->n > start + LEAD)
        out->answers[out->n_answers++] = (struct window_answer){
            .first = start + LEAD,
            .end = s->n,
            .distance = start - (p->at + first) + LEAD,
        };
}

/* From 7 to 200, any order of magnitude as likely as another: where few words
 * come again often, looking back pays before it is well aimed. */
static size_t
draw_length(struct task *t)
{
    double span = log((double)LONGEST_PASSAGE / SHORTEST_REPEAT);
    return (size_t)(SHORTEST_REPEAT * exp(span * mb_rng_double(t->rng)));
}

/* Fill the window with new passages and repeats of those before. */
static void
write_repeats(struct task *t, struct sink *s, struct task_result *out)
{
    struct passage list[MAX_PASSAGES];
    size_t most = between(t, 1, MAX_PASSAGES);
    size_t n = 0;
    bool was_new = false; // two in a row would leave little to repeat
    if (t->world->bos >= 0)
        put(s, t->world->bos, TASK_NOT_WANTED);
    while (s->n < s->size && t->status == MB_OK) {
        bool may_be_new = !was_new && n < most && chance(t, 0.5);
        if (n > 0 && !may_be_new && out->n_answers < WINDOW_MAX_ANSWERS) {
            put_repeat(t, s, &list[below(t, n)], out);
            was_new = false;
            continue;
        }
        was_new = true;
        struct passage p = draw_passage(t, draw_length(t));
        p.at = s->n;
        for (size_t i = 0; i < p.n; i++)
            put(s, p.ids[i],
                p.is_prose && i > 0 ? TASK_PROSE : TASK_NOT_WANTED);
        if (p.n == 0) // a shard may hold no prose here
            put(s, t->world->eos >= 0 ? t->world->eos : 0, TASK_NOT_WANTED);
        if (p.n >= SHORTEST_REPEAT && n < MAX_PASSAGES)
            list[n++] = p;
    }
}

mb_status
task_make(const struct task_world *world, window_kind kind, struct mb_rng *rng,
    size_t n, struct mb_arena *arena, struct task_result *out)
{
    struct task *t = mb_arena_calloc(arena, 1, sizeof *t);
    size_t room = 2 * n + 2048;
    if (!t)
        return MB_ERR_NOMEM;
    t->world = world;
    t->rng = rng;
    t->arena = arena;
    // Prose takes at least a fifth of a window.
    t->limit = n - n / 5;
    t->pool.room = room;
    t->pool.ids = mb_arena_alloc(arena, room * sizeof *t->pool.ids);
    t->pool.wanted = mb_arena_alloc(arena, room);
    if (!t->pool.ids || !t->pool.wanted)
        return MB_ERR_NOMEM;
    mb_buffer_init(&t->encoded, (size_t)1 << 20);
    switch (kind) {
    case WINDOW_PASSKEY:
        make_passkey(t);
        break;
    case WINDOW_LOOKUP:
        make_lookup(t);
        break;
    case WINDOW_COPY:
        make_copy(t);
        break;
    case WINDOW_LIST:
        make_list(t);
        break;
    default: // has no items
        break;
    }
    struct sink sink = {out->ids, out->wanted, 0, n};
    out->n_answers = 0;
    if (kind == WINDOW_REPEAT)
        write_repeats(t, &sink, out);
    else if (t->status == MB_OK)
        assemble(t, &sink, out);
    mb_buffer_fini(&t->encoded);
    return t->status;
}
