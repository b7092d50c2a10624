/* SPDX-License-Identifier: Apache-2.0
 * tools/common/htmltext.c - HTML to text, tag by tag.
 *
 * No tree is built: a page is walked once, and each tag only says how many line
 * feeds must stand before the next text. White space collapses, but not within
 * <pre>. What is not markup by its looks ("a < b") is text.
 * Threads: any. */
#include "htmltext.h"

#include <string.h>

#include "display.h"

#define MAX_TAG 15

/* Named characters of HTML 4: those of Latin-1 in order from U+00A0, and the
 * rest as name=hex. */
static const char latin_entities[] =
    "nbsp iexcl cent pound curren yen brvbar sect uml copy ordf laquo "
    "not shy reg macr deg plusmn sup2 sup3 acute micro para middot cedil "
    "sup1 ordm raquo frac14 frac12 frac34 iquest Agrave Aacute Acirc "
    "Atilde Auml Aring AElig Ccedil Egrave Eacute Ecirc Euml Igrave "
    "Iacute Icirc Iuml ETH Ntilde Ograve Oacute Ocirc Otilde Ouml times "
    "Oslash Ugrave Uacute Ucirc Uuml Yacute THORN szlig agrave aacute "
    "acirc atilde auml aring aelig ccedil egrave eacute ecirc euml "
    "igrave iacute icirc iuml eth ntilde ograve oacute ocirc otilde ouml "
    "divide oslash ugrave uacute ucirc uuml yacute thorn yuml ";
static const char other_entities[] =
    "quot=22 amp=26 apos=27 lt=3c gt=3e OElig=152 oelig=153 Scaron=160 "
    "scaron=161 Yuml=178 fnof=192 circ=2c6 tilde=2dc Alpha=391 Beta=392 "
    "Gamma=393 Delta=394 Epsilon=395 Zeta=396 Eta=397 Theta=398 Iota=399 "
    "Kappa=39a Lambda=39b Mu=39c Nu=39d Xi=39e Omicron=39f Pi=3a0 "
    "Rho=3a1 Sigma=3a3 Tau=3a4 Upsilon=3a5 Phi=3a6 Chi=3a7 Psi=3a8 "
    "Omega=3a9 alpha=3b1 beta=3b2 gamma=3b3 delta=3b4 epsilon=3b5 "
    "zeta=3b6 eta=3b7 theta=3b8 iota=3b9 kappa=3ba lambda=3bb mu=3bc "
    "nu=3bd xi=3be omicron=3bf pi=3c0 rho=3c1 sigmaf=3c2 sigma=3c3 "
    "tau=3c4 upsilon=3c5 phi=3c6 chi=3c7 psi=3c8 omega=3c9 thetasym=3d1 "
    "upsih=3d2 piv=3d6 ensp=2002 emsp=2003 thinsp=2009 zwnj=200c "
    "zwj=200d lrm=200e rlm=200f ndash=2013 mdash=2014 lsquo=2018 "
    "rsquo=2019 sbquo=201a ldquo=201c rdquo=201d bdquo=201e dagger=2020 "
    "Dagger=2021 bull=2022 hellip=2026 permil=2030 prime=2032 Prime=2033 "
    "lsaquo=2039 rsaquo=203a oline=203e frasl=2044 euro=20ac image=2111 "
    "weierp=2118 real=211c trade=2122 alefsym=2135 larr=2190 uarr=2191 "
    "rarr=2192 darr=2193 harr=2194 crarr=21b5 lArr=21d0 uArr=21d1 "
    "rArr=21d2 dArr=21d3 hArr=21d4 forall=2200 part=2202 exist=2203 "
    "empty=2205 nabla=2207 isin=2208 notin=2209 ni=220b prod=220f "
    "sum=2211 minus=2212 lowast=2217 radic=221a prop=221d infin=221e "
    "ang=2220 and=2227 or=2228 cap=2229 cup=222a int=222b there4=2234 "
    "sim=223c cong=2245 asymp=2248 ne=2260 equiv=2261 le=2264 ge=2265 "
    "sub=2282 sup=2283 nsub=2284 sube=2286 supe=2287 oplus=2295 "
    "otimes=2297 perp=22a5 sdot=22c5 lceil=2308 rceil=2309 lfloor=230a "
    "rfloor=230b lang=2329 rang=232a loz=25ca spades=2660 clubs=2663 "
    "hearts=2665 diams=2666 ";

enum tag_kind {
    TAG_INLINE,
    TAG_LINE,  /* begins and ends a line */
    TAG_BLOCK, /* begins and ends a paragraph */
    TAG_CELL,  /* a tab between neighbours */
    TAG_ITEM,  /* a line that begins with a dash */
    TAG_PRE,
    TAG_TITLE,
    TAG_SKIP /* nothing within is text */
};

struct tag_rule {
    const char *name;
    enum tag_kind kind;
};

static const struct tag_rule tag_rules[] = {
    {"address", TAG_BLOCK},
    {"article", TAG_BLOCK},
    {"aside", TAG_BLOCK},
    {"blockquote", TAG_BLOCK},
    {"br", TAG_LINE},
    {"caption", TAG_BLOCK},
    {"dd", TAG_LINE},
    {"details", TAG_BLOCK},
    {"div", TAG_LINE},
    {"dl", TAG_BLOCK},
    {"dt", TAG_LINE},
    {"fieldset", TAG_BLOCK},
    {"figcaption", TAG_BLOCK},
    {"figure", TAG_BLOCK},
    {"footer", TAG_BLOCK},
    {"form", TAG_BLOCK},
    {"h1", TAG_BLOCK},
    {"h2", TAG_BLOCK},
    {"h3", TAG_BLOCK},
    {"h4", TAG_BLOCK},
    {"h5", TAG_BLOCK},
    {"h6", TAG_BLOCK},
    {"header", TAG_BLOCK},
    {"hr", TAG_BLOCK},
    {"li", TAG_ITEM},
    {"main", TAG_BLOCK},
    {"nav", TAG_BLOCK},
    {"ol", TAG_BLOCK},
    {"option", TAG_LINE},
    {"p", TAG_BLOCK},
    {"pre", TAG_PRE},
    {"script", TAG_SKIP},
    {"section", TAG_BLOCK},
    {"style", TAG_SKIP},
    {"summary", TAG_LINE},
    {"svg", TAG_SKIP},
    {"table", TAG_BLOCK},
    {"td", TAG_CELL},
    {"template", TAG_SKIP},
    {"th", TAG_CELL},
    {"title", TAG_TITLE},
    {"tr", TAG_LINE},
    {"ul", TAG_BLOCK},
    {NULL, TAG_INLINE},
};

struct page {
    const uint8_t *data;
    size_t size;
    size_t at;
    struct mb_buffer *text;
    struct mb_buffer *title;
    struct mb_buffer *out; /* one of the two */
    size_t text_start;     /* where ours begins in text */
    size_t title_start;
    unsigned feeds; /* line feeds wanted before the next text */
    bool space;     /* white space wanted before it */
    bool tab;
    bool item;
    unsigned pre; /* depth of <pre> */
    mb_status status;
};

struct tag {
    char name[MAX_TAG + 1];
    enum tag_kind kind;
    bool closing;
};

/* ---- output ---- */

static void
put(struct page *p, const void *data, size_t size)
{
    if (p->status == MB_OK)
        p->status = mb_buffer_append(p->out, data, size);
}

static bool
has_output(const struct page *p)
{
    return p->out->size > (p->out == p->text ? p->text_start : p->title_start);
}

/* What blocks and blanks asked for; nothing at the start of the text. */
static void
put_gap(struct page *p)
{
    if (has_output(p)) {
        if (p->feeds > 0)
            put(p, "\n\n", p->feeds > 1 ? 2 : 1);
        else if (p->tab)
            put(p, "\t", 1);
        else if (p->space)
            put(p, " ", 1);
    }
    if (p->item)
        put(p, "- ", 2);
    p->feeds = 0;
    p->space = false;
    p->tab = false;
    p->item = false;
}

static void
put_text(struct page *p, const void *data, size_t size)
{
    put_gap(p);
    put(p, data, size);
}

static void
want_feeds(struct page *p, unsigned n)
{
    if (p->feeds < n)
        p->feeds = n;
}

/* ---- windows-1252, which "Latin-1" means on the web ---- */

static uint32_t
latin_char(uint8_t byte)
{
    static const uint16_t high[32] = {0x20AC, 0x81, 0x201A, 0x0192, 0x201E,
        0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0x8D,
        0x017D, 0x8F, 0x90, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013,
        0x2014, 0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0x9D, 0x017E, 0x0178};

    return byte >= 0x80 && byte < 0xA0 ? high[byte - 0x80] : byte;
}

/* ---- entities ---- */

/* 0 if there is no such name. */
static uint32_t
latin_entity(const char *name, size_t size)
{
    const char *p = latin_entities;

    for (uint32_t c = 0xA0; *p != 0; c++) {
        const char *end = strchr(p, ' ');

        if ((size_t)(end - p) == size && memcmp(p, name, size) == 0)
            return c;
        p = end + 1;
    }
    return 0;
}

/* Hex digits up to a blank. */
static uint32_t
hex_number(const char *p)
{
    uint32_t c = 0;

    for (; *p != ' '; p++) {
        c = c * 16 + (uint32_t)(*p <= '9' ? *p - '0' : *p - 'a' + 10);
    }
    return c;
}

static uint32_t
named_entity(const char *name, size_t size)
{
    const char *p = other_entities;
    uint32_t c = latin_entity(name, size);

    if (c != 0)
        return c;
    while (*p != 0) {
        const char *equals = strchr(p, '=');

        if ((size_t)(equals - p) == size && memcmp(p, name, size) == 0)
            return hex_number(equals + 1);
        p = strchr(equals, ' ') + 1;
    }
    return 0;
}

/* Value of "#65" or "#x41"; UINT32_MAX if it is no number. */
static uint32_t
numbered_entity(const char *s, size_t size)
{
    bool hex = size > 2 && (s[1] == 'x' || s[1] == 'X');
    uint32_t c = 0;

    if (size < (hex ? 3u : 2u))
        return UINT32_MAX;
    for (size_t i = hex ? 2 : 1; i < size; i++) {
        int d;

        if (s[i] >= '0' && s[i] <= '9')
            d = s[i] - '0';
        else if (hex && (s[i] | 32) >= 'a' && (s[i] | 32) <= 'f')
            d = (s[i] | 32) - 'a' + 10;
        else
            return UINT32_MAX;
        if (c <= 0x10FFFF)
            c = c * (hex ? 16 : 10) + (uint32_t)d;
    }
    // References to C1 controls mean windows-1252 in practice.
    return c >= 0x80 && c < 0xA0 ? latin_char((uint8_t)c) : c;
}

/* At '&': put the character it names, or the ampersand itself. */
static void
take_entity(struct page *p)
{
    const char *s = (const char *)p->data + p->at + 1;
    size_t left = p->size - p->at - 1;
    size_t n = 0;
    uint32_t c = UINT32_MAX;
    uint8_t utf8[4];

    while (n < left && n < 32 && s[n] != ';' && s[n] != '&' && s[n] != '<' &&
           s[n] > ' ') {
        n++;
    }
    if (n > 0 && n < left && s[n] == ';') {
        c = s[0] == '#' ? numbered_entity(s, n) : named_entity(s, n);
        if (c == 0)
            c = s[0] == '#' ? 0xFFFD : UINT32_MAX;
    }
    if (c == UINT32_MAX) {
        put_text(p, "&", 1);
        p->at++;
        return;
    }
    p->at += n + 2;
    if (c == 0xA0)
        p->space = true;
    else if (c != 0xAD)
        put_text(p, utf8, utf8_encode(utf8, c));
}

/* ---- tags ---- */

static uint8_t
lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t)(c - 'A' + 'a') : c;
}

static bool
is_name_char(uint8_t c)
{
    c = lower(c);
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

/* Offset behind the next occurrence of `what` (lower case), or the end. */
static size_t
behind(const struct page *p, size_t from, const char *what)
{
    size_t n = strlen(what);

    for (size_t i = from; i + n <= p->size; i++) {
        size_t j = 0;

        while (j < n && lower(p->data[i + j]) == (uint8_t)what[j]) {
            j++;
        }
        if (j == n)
            return i + n;
    }
    return p->size;
}

/* Offset behind the '>' that ends the tag; quoted values may hold one. */
static size_t
behind_tag(const struct page *p, size_t at)
{
    uint8_t quote = 0;

    for (; at < p->size; at++) {
        uint8_t c = p->data[at];

        if (quote != 0) {
            quote = c == quote ? 0 : quote;
        } else if (c == '>') {
            return at + 1;
        } else if ((c == '"' || c == '\'') && p->data[at - 1] == '=') {
            quote = c;
        }
    }
    return p->size;
}

/* At '<': read a tag and go behind it; false if it is text. */
static bool
take_tag(struct page *p, struct tag *tag)
{
    size_t at = p->at + 1;
    size_t n = 0;

    tag->closing = at < p->size && p->data[at] == '/';
    at += tag->closing ? 1 : 0;
    if (at >= p->size || lower(p->data[at]) < 'a' || lower(p->data[at]) > 'z')
        return false;
    for (; at < p->size && is_name_char(p->data[at]); at++) {
        if (n < MAX_TAG)
            tag->name[n++] = (char)lower(p->data[at]);
    }
    tag->name[n] = 0;
    tag->kind = TAG_INLINE;
    for (const struct tag_rule *r = tag_rules; r->name != NULL; r++) {
        if (strcmp(r->name, tag->name) == 0)
            tag->kind = r->kind;
    }
    p->at = behind_tag(p, at);
    return true;
}

static void
skip_element(struct page *p, const struct tag *tag)
{
    char end[MAX_TAG + 3] = "</";

    if (tag->closing || p->data[p->at - 1] != '>' ||
        (p->at >= 2 && p->data[p->at - 2] == '/'))
        return;
    memcpy(end + 2, tag->name, strlen(tag->name) + 1);
    p->at = behind_tag(p, behind(p, p->at, end));
}

static void
set_out(struct page *p, struct mb_buffer *out)
{
    p->out = out;
    p->feeds = has_output(p) ? 2 : 0;
    p->space = false;
}

static void
apply_tag(struct page *p, const struct tag *tag)
{
    switch (tag->kind) {
    case TAG_INLINE:
        break;
    case TAG_LINE:
        // A second <br> in a row makes a paragraph.
        want_feeds(p, strcmp(tag->name, "br") == 0 ? p->feeds + 1 : 1);
        break;
    case TAG_ITEM:
        want_feeds(p, 1);
        p->item = !tag->closing;
        break;
    case TAG_BLOCK:
        want_feeds(p, 2);
        break;
    case TAG_CELL:
        p->tab = true;
        break;
    case TAG_PRE:
        want_feeds(p, 2);
        if (!tag->closing)
            p->pre++;
        else if (p->pre > 0)
            p->pre--;
        break;
    case TAG_TITLE:
        set_out(p, tag->closing ? p->text : p->title);
        break;
    case TAG_SKIP:
        skip_element(p, tag);
        break;
    }
}

/* At '<': markup of any kind, or the character itself. */
static void
take_markup(struct page *p)
{
    const uint8_t *s = p->data + p->at;
    size_t left = p->size - p->at;
    struct tag tag;

    if (left >= 4 && memcmp(s, "<!--", 4) == 0) {
        p->at = behind(p, p->at + 4, "-->");
    } else if (left >= 2 && (s[1] == '!' || s[1] == '?')) {
        p->at = behind(p, p->at, ">");
    } else if (take_tag(p, &tag)) {
        apply_tag(p, &tag);
    } else {
        put_text(p, "<", 1);
        p->at++;
    }
}

/* ---- text ---- */

static bool
is_space(uint8_t c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\f';
}

static void
take_space(struct page *p)
{
    uint8_t c = p->data[p->at++];

    if (p->pre == 0)
        p->space = true;
    // The line feed behind <pre> is not part of it.
    else if (c != '\r' && (c != '\n' || p->feeds == 0))
        put_text(p, &c, 1);
}

static void
take_text(struct page *p)
{
    size_t from = p->at;

    while (p->at < p->size && p->data[p->at] != '<' && p->data[p->at] != '&' &&
           p->data[p->at] != 0 && !is_space(p->data[p->at])) {
        p->at++;
    }
    put_text(p, p->data + from, p->at - from);
}

static void
walk_page(struct page *p)
{
    while (p->at < p->size && p->status == MB_OK) {
        uint8_t c = p->data[p->at];

        if (c == '<')
            take_markup(p);
        else if (c == '&')
            take_entity(p);
        else if (is_space(c))
            take_space(p);
        else if (c == 0)
            p->at++;
        else
            take_text(p);
    }
}

/* Not UTF-8, and says so near its start. */
static bool
is_latin(struct mb_slice html)
{
    struct page head = {
        .data = html.data, .size = html.size < 2048 ? html.size : 2048};

    if (mb_utf8_is_valid(html, NULL))
        return false;
    return behind(&head, 0, "charset=iso-8859-1") < head.size ||
           behind(&head, 0, "charset=\"iso-8859-1") < head.size ||
           behind(&head, 0, "charset=windows-1252") < head.size ||
           behind(&head, 0, "charset=\"windows-1252") < head.size;
}

static mb_status
convert_latin(struct mb_slice html, struct mb_buffer *out)
{
    mb_status st = MB_OK;

    for (size_t i = 0; i < html.size && st == MB_OK; i++) {
        uint8_t utf8[4];

        st = mb_buffer_append(
            out, utf8, utf8_encode(utf8, latin_char(html.data[i])));
    }
    return st;
}

mb_status
html_to_text(
    struct mb_slice html, struct mb_buffer *text, struct mb_buffer *title)
{
    struct mb_buffer converted;
    struct page p = {.text = text, .title = title, .out = text};

    mb_buffer_init(&converted, SIZE_MAX);
    p.text_start = text->size;
    p.title_start = title->size;
    if (is_latin(html)) {
        p.status = convert_latin(html, &converted);
        html = mb_buffer_slice(&converted);
    }
    p.data = html.data;
    p.size = html.size;
    walk_page(&p);
    mb_buffer_fini(&converted);
    return p.status;
}
