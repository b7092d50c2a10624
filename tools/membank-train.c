/* SPDX-License-Identifier: Apache-2.0
 * tools/membank-train.c - train what membank reads with.
 *
 * The commands lie in train/: tokenizer.c makes a vocabulary, shards.c tokens of
 * texts, anchor.c trains a transformer on them, export.c writes it as GGUF,
 * eval.c tells what it knows, bank.c and hmt.c train what is added to a model.
 * Threads: the main thread; the trainer has its own. */
#include <string.h>

#include "lines.h"
#include "train.h"

static const struct mb_cli_option options[] = {
    {"out", 'o', "DIR", false,
        "folder of the shards or of the run (made if it is missing); file that "
        "export or tokenizer writes",
        NULL},
    {"tokenizer", 0, "GGUF", false, "shards: file with the vocabulary", NULL},
    {"max-chars", 0, "N", false,
        "shards, tokenizer: only the first N characters of each document",
        NULL},
    {"pieces", 0, "N", false, "tokenizer: size of the vocabulary", "8192"},
    {"spm", 0, "FILE", false,
        "tokenizer: a model of SentencePiece, instead of texts to train one on",
        NULL},
    {"config", 'c', "FILE", false,
        "anchor: the run; with --resume, DIR/config unless given", NULL},
    {"resume", 'r', NULL, false, "anchor, hmt: go on from DIR/checkpoint",
        NULL},
    {"steps", 0, "N", false,
        "anchor, hmt: save and end after N steps of this sitting", NULL},
    {"speed", 0, NULL, false,
        "anchor: measure a few steps beside plain sgemm, train nothing", NULL},
    {"print-config", 0, NULL, false, "print all keys with defaults, and end",
        NULL},
    {"type", 0, "NAME", false,
        "export: f32, f16 or q8_0 alone, instead of all three", NULL},
    {"rows", 0, "N", false,
        "eval: rows of a window; 640, or the run's, unless given", NULL},
    {"text-tokens", 0, "N", false,
        "eval: tokens of a window of text; 63 for each 64 rows unless given",
        NULL},
    {"windows", 0, "N", false, "eval: only so many windows of each text", NULL},
    {"tasks", 0, "N", false,
        "eval: windows of each synthetic task and form; 0: none", "64"},
    {"threads", 0, "N", false, "eval, bank, hmt: threads; 0: one for each CPU",
        "0"},
    {"csv", 0, NULL, false, "eval: print CSV", NULL},
    {"store", 's', "DIR", false, "bank: the store, which no daemon has open",
        NULL},
    {"collection", 'C', "NAME", false, "bank: whose text is learnt", NULL},
    {"seconds", 0, "N", false, "bank: save and end after so long", NULL},
    {"tokens", 0, "N", false, "bank: save and end after so many", NULL},
    {"checkpoint", 0, "STEPS", false,
        "bank: save after so many steps; 0: every minute", "0"},
    {"generic", 0, NULL, false,
        "bank: then train a block that all texts share, to compare with", NULL},
    {"rebuild", 0, NULL, false, "bank: forget the bank, begin with a new tree",
        NULL},
    {"fan-out", 0, "N", false, "bank: children of a node of a new tree", NULL},
    {"levels", 0, "N", false, "bank: levels of a new tree", NULL},
    {"epochs", 0, "N", false, "bank: how often a new one sees each text", NULL},
    {"model", 0, "GGUF", false, "hmt: the model that is to have memories",
        NULL},
    {"heldout", 0, "SHARD", false, "hmt: text to judge by", NULL},
    {"first-steps", 0, "N", false,
        "hmt: steps over two segments, without recall", "100"},
    {"second-steps", 0, "N", false, "hmt: steps with recall behind these",
        "200"},
    {"depth", 0, "N", false, "hmt: segments of a sample with recall", "6"},
    {"batch", 0, "N", false, "hmt: samples of a step", "4"},
    {"rate", 0, "X", false, "hmt: highest learning rate", "0.003"},
    {"segment", 0, "BLOCKS", false, "hmt: blocks of a segment", "4"},
    {"summary", 0, "TOKENS", false,
        "hmt: tokens before a segment that ask for what is recalled", "126"},
    {"sensory", 0, "TOKENS", false,
        "hmt: tokens before a segment that are repeated in front of it", "32"},
    {"key-width", 0, "N", false, "hmt: width of recall's queries and keys",
        "64"},
    {"memories", 0, "N", false,
        "hmt: that one recall mixes at most, of all that there are", "300"},
    {"recall", 0, "WHAT", false,
        "hmt: all, or last: a plain recurrence, to compare with", "all"},
    {"train-backbone", 0, NULL, false,
        "hmt: the model learns along, and is written beside the result", NULL},
    {"backbone-rate", 0, "X", false, "hmt: part of the rate for the model",
        "0.1"},
    {"seed", 0, "N", false, "hmt: of weights and samples", "1"},
    {"judged", 0, "N", false,
        "hmt: windows of the held-out text, of twice the depth", "12"},
    {"judge-steps", 0, "N", false, "hmt: steps between two looks at it", "50"},
    {"quiet", 'q', NULL, false, "no progress", NULL},
    {"json", 0, NULL, false, "print JSON, one object a line", NULL},
    {NULL, 0, NULL, false, NULL, NULL},
};

static const struct mb_cli_example examples[] = {
    {"membank-train shards -o shards --tokenizer anchor.gguf "
     "books=books.jsonl.zst wiki=wiki.jsonl.zst",
        "texts to tokens, a shard for each name"},
    {"membank-train tokenizer -o vocab.gguf --pieces 8192 books.jsonl.zst",
        "a vocabulary of one's own (needs spm_train)"},
    {"membank-train --print-config > my.conf", "a config to begin with"},
    {"nohup membank-train anchor -c my.conf -o run &",
        "train; run/log and run/curve.svg tell how it goes"},
    {"membank-train anchor -r -o run", "go on where it was stopped"},
    {"membank-train anchor -c my.conf --speed",
        "how fast it would be, and what sgemm alone reaches"},
    {"membank-train export --type q8_0 -o anchor.gguf run",
        "weights of the last checkpoint"},
    {"membank-train eval anchor.gguf books=shards/books-dev.mbtok",
        "losses and answers, without landmarks and with them"},
    {"membank-train hmt --model anchor.gguf -o run --heldout dev.mbtok "
     "books.mbtok",
        "memories of segments for long contexts"},
    {"membank-train bank -s ./demo -C notes --tokenizer anchor.gguf",
        "memory blocks of what a collection says"},
    {NULL, NULL},
};

static const struct mb_cli_program program = {
    .name = "membank-train",
    .summary = "train a small transformer on one's own texts",
    .usage =
        "[OPTION]... tokenizer|shards|anchor|export|eval|bank|hmt [ARG]...",
    .description =
        "tokenizer FILE... makes a vocabulary of such texts: SentencePiece BPE "
        "with a piece for each byte, trained by SentencePiece's spm_train, and "
        "the control tokens <landmark> <summary> <memory> <query> <passage>.\n"
        "\n"
        "shards NAME=FILE... makes tokens of texts: JSONL (plain, zstd, gzip) "
        "with a \"text\" in each line, folders of text, Markdown and HTML.\n"
        "\n"
        "anchor trains a decoder from scratch, by a config of key = value "
        "lines that is copied into the folder of the run. SIGINT and SIGTERM "
        "save and end; a run that was stopped or killed is taken up with "
        "--resume and gives the same losses as one that was not (by the same "
        "number of threads). The folder has:\n"
        "\n"
        "  checkpoint      weights and the optimizer's state\n"
        "  curve.csv       a line for each step and each held-out loss\n"
        "  curve.svg       the same as a picture\n"
        "  log             what happened, for people\n"
        "  model-*.gguf    the result in F32, F16, Q8_0\n"
        "\n"
        "export DIR writes model-f32.gguf, model-f16.gguf and model-q8_0.gguf "
        "of the last checkpoint, at any time.\n"
        "\n"
        "eval RUN|GGUF [NAME=SHARD]... tells what a model knows: its loss on "
        "held-out text (of a run, that of its config unless others are given) "
        "and its answers to synthetic tasks by how far back the fact stands, "
        "both without landmark rows and with them. An answer is exact if all "
        "its tokens are what the model takes for the most likely, given those "
        "before.\n"
        "\n"
        "bank trains the memory blocks of a collection on its own documents, "
        "while no daemon has the store open; the bank is made if there is "
        "none. A block whose loss on text that was held out did not fall is "
        "not used. A run that was stopped or killed is taken up by the next.\n"
        "\n"
        "hmt SHARD... trains what a Hierarchical Memory Transformer adds to a "
        "model: a prompt that summarises, a first memory, two projections that "
        "recall, and their gain. The model stays as it is, unless "
        "--train-backbone is given. The folder gets checkpoint, curve.csv, "
        "curve.svg and NAME.membank.gguf, which belongs beside "
        "NAME.gguf. A held-out text tells what memories are worth.",
    .options = options,
    .examples = examples,
};

volatile sig_atomic_t train_is_stopped;

static void
on_signal(int number)
{
    (void)number;
    train_is_stopped = 1;
}

/* ---- shared ---- */

mb_status
train_path(const char *dir, const char *name, char out[TRAIN_MAX_PATH],
    struct mb_error *err)
{
    int n = snprintf(out, TRAIN_MAX_PATH, "%s/%s", dir, name);
    if (n < 0 || n >= TRAIN_MAX_PATH)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "a path of %d bytes is too long", n);
    return MB_OK;
}

mb_status
train_open_vocab(const char *path, struct mb_gguf **gguf,
    struct mb_tokenizer **tok, struct mb_error *err)
{
    struct mb_gguf *g = NULL;
    mb_status st = mb_gguf_open(path, &g, err);
    if (st == MB_OK)
        st = mb_tokenizer_new(g, tok, err);
    if (st != MB_OK) {
        mb_gguf_close(g);
        return st;
    }
    *gguf = g;
    return MB_OK;
}

struct mb_slice
train_first_chars(struct mb_slice text, uint64_t n)
{
    size_t at = 0;
    if (n == 0)
        return text;
    while (at < text.size && n > 0) {
        at++;
        while (at < text.size && (text.data[at] & 0xC0) == 0x80)
            at++;
        n--;
    }
    return mb_slice_of(text.data, at);
}

mb_status
train_read_config(const char *path, struct config *out, struct mb_buffer *text,
    struct mb_error *err)
{
    mb_status st = file_read(path, text, err);
    if (st != MB_OK)
        return st;
    return config_parse(out, mb_buffer_slice(text), path, err);
}

/* ---- the whole ---- */

static mb_status
run(const struct mb_cli *cli, struct mb_error *err)
{
    const char *command = mb_cli_arg(cli, 0);
    if (mb_cli_has(cli, "print-config")) {
        config_print();
        return MB_OK;
    }
    if (!command)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "what to do: tokenizer, shards, anchor, export, eval, bank or "
            "hmt");
    if (strcmp(command, "shards") == 0)
        return train_shards(cli, err);
    if (strcmp(command, "anchor") == 0)
        return train_anchor(cli, err);
    if (strcmp(command, "export") == 0)
        return train_export(cli, err);
    if (strcmp(command, "tokenizer") == 0)
        return train_tokenizer(cli, err);
    if (strcmp(command, "eval") == 0)
        return train_eval(cli, err);
    if (strcmp(command, "bank") == 0)
        return train_bank(cli, err);
    if (strcmp(command, "hmt") == 0)
        return train_hmt(cli, err);
    return mb_error_set(err, MB_ERR_BAD_ARG,
        "no command %s; there are tokenizer, shards, anchor, export, "
        "eval, bank and hmt",
        command);
}

int
main(int argc, char **argv)
{
    struct mb_cli *cli = NULL;
    struct mb_error err;
    // A second signal ends the program at once.
    struct sigaction act = {
        .sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    mb_status st = mb_cli_parse(&program, argc, argv, &cli, &err);
    int code = 0;
    if (st != MB_OK)
        return tool_parse_failed(&program, st, &err);
    (void)sigaction(SIGINT, &act, NULL);
    (void)sigaction(SIGTERM, &act, NULL);
    // A limit on the size of files is an error like a full disk.
    (void)sigaction(SIGXFSZ, &ignore, NULL);
    st = run(cli, &err);
    if (st == MB_ERR_BAD_ARG)
        code = mb_cli_usage(&program, &err);
    else if (st != MB_OK)
        code = mb_cli_fail(&program, &err);
    mb_cli_free(cli);
    return tool_finish(&program, code);
}
