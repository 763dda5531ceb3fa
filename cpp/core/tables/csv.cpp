#include "core/tables/csv.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <string_view>

#if !defined(__cpp_lib_to_chars) && defined(__APPLE__)
#include <xlocale.h>
#endif

namespace vegrad {
namespace {

constexpr double kPowers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                              1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                              1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
constexpr int kMostDigits = 19;               // that 64 bits hold
constexpr std::uint64_t kExact = 1ull << 53;  // up to here, whole numbers are doubles
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

bool is_digit(char c) { return unsigned(c - '0') < 10; }
bool is_blank(char c) { return c == ' ' || c == '\t'; }

// The nearest double of a number that is written with a point; the locale has no say.
double nearest(const std::string& text) {
#if defined(__cpp_lib_to_chars)
  double value = 0;
  const char *const begin = text.data(), *const end = begin + text.size();
  const auto found = std::from_chars(begin, end, value);
  if (found.ec != std::errc::result_out_of_range) return value;
  // Too large or too small, which is told by the exponent that the digits come to.
  const std::size_t e = text.find_first_of("eE");
  const std::string_view digits = std::string_view(text).substr(0, e);
  const bool negative = text[0] == '-';
  const std::size_t first = digits.find_first_of("123456789"), point = digits.find('.');
  const long long whole = std::min(point, digits.size());
  long long power = whole - static_cast<long long>(first);
  if (e != std::string::npos) power += std::atoll(text.c_str() + e + 1);
  const double size = power > 0 ? std::numeric_limits<double>::infinity() : 0.0;
  return negative ? -size : size;
#elif defined(__APPLE__)
  return strtod_l(text.c_str(), nullptr, nullptr);
#else
  static const _locale_t plain = _create_locale(LC_NUMERIC, "C");
  return _strtod_l(text.c_str(), nullptr, plain);
#endif
}

double nearest(const char* begin, const char* end, char decimal) {
  std::string text(begin + (*begin == '+'), end);
  std::replace(text.begin(), text.end(), decimal, '.');
  return nearest(text);
}

// Reads a number of digits; null if there is none. A product or a quotient of two numbers that
// doubles hold is the nearest double (Clinger 1990, How to read floating point numbers accurately).
const char* read_number(const char* p, char decimal, double& value) {
  const char* const begin = p;
  const bool negative = *p == '-';
  p += negative || *p == '+';
  std::uint64_t digits = 0;
  const char* const first = p;
  for (; is_digit(*p); ++p) digits = digits * 10 + std::uint64_t(*p - '0');
  int count = int(std::min<std::ptrdiff_t>(p - first, 1000)), power = 0;
  if (*p == decimal) {
    const char* const point = ++p;
    for (; is_digit(*p); ++p) digits = digits * 10 + std::uint64_t(*p - '0');
    power = -int(std::min<std::ptrdiff_t>(p - point, 1000));
    count -= power;
  }
  if (count == 0) return nullptr;
  if (*p == 'e' || *p == 'E') {
    const char* q = p + 1;
    const bool down = *q == '-';
    q += down || *q == '+';
    if (!is_digit(*q)) return nullptr;
    int exponent = 0;
    for (; is_digit(*q); ++q) exponent = std::min(exponent * 10 + (*q - '0'), 100000);
    power += down ? -exponent : exponent;
    p = q;
  }
  if (count > kMostDigits || digits > kExact || power < -22 || power > 22) {
    value = nearest(begin, p, decimal);
    return p;
  }
  const double whole = double(digits);
  const double size = power < 0 ? whole / kPowers[-power] : whole * kPowers[power];
  value = negative ? -size : size;
  return p;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> names) {
  const auto same = [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a + 32 : a) == b; };
  return std::any_of(names.begin(), names.end(), [&](std::string_view name) {
    return std::equal(text.begin(), text.end(), name.begin(), name.end(), same);
  });
}

enum class Kind { number, missing, word };

Kind kind_of(std::string_view text, char decimal, double& value) {
  text = trimmed(text);
  if (is_one_of(text, {"", "na", "n/a", "nan", "null", "+nan", "-nan"})) return Kind::missing;
  const std::string_view unsigned_text = text.substr(text[0] == '-' || text[0] == '+');
  if (is_one_of(unsigned_text, {"inf", "infinity"})) {
    value = text[0] == '-' ? -HUGE_VAL : HUGE_VAL;
    return Kind::number;
  }
  const std::string own(text);  // ends with 0
  return read_number(own.c_str(), decimal, value) == own.c_str() + own.size() ? Kind::number
                                                                              : Kind::word;
}

// Where reading stands.
class Reader {
 public:
  Reader(const char* begin, const char* end, CsvForm form, std::int64_t line)
      : p_(begin), end_(end), form_(form), line_(line) {}

  std::int64_t line() const { return line_; }
  bool broken() const { return broken_; }
  std::int64_t empty() const { return empty_; }

  // Goes on to the next line with more than separators; false at the end.
  bool begin_row() {
    for (;;) {
      const char* p = p_;
      bool separated = false;
      for (; p < end_ && (*p == ' ' || *p == '\r' || *p == form_.separator); ++p)
        separated |= *p == form_.separator;
      if (p < end_ && *p != '\n') return true;
      empty_ += separated;
      if (p == end_) return false;
      p_ = p + 1;
      ++line_;
    }
  }

  // The cell as a number or what else it is. `ended` becomes true with the last of its row.
  Kind number(double& value, bool& ended) {
    if (const char* p = read_number(skipped(), form_.decimal, value)) {
      while (*p == ' ') ++p;
      if (p < end_ && *p == form_.separator) {
        p_ = p + 1;
        ended = false;
        return Kind::number;
      }
      if (p <= end_ && ends_line(p)) {
        ended = true;
        return Kind::number;
      }
    }
    return kind_of(text(ended), form_.decimal, value);
  }

  // The cell's text, which is good until the next call.
  std::string_view text(bool& ended) {
    const char* p = skipped();
    if (p < end_ && *p == '"') return quoted(p + 1, ended);
    const char* q = p_;
    while (q < end_ && *q != form_.separator && *q != '\n') ++q;
    std::string_view found(p_, std::size_t(q - p_));
    leave(q, ended);
    if (ended && !found.empty() && found.back() == '\r') found.remove_suffix(1);
    return found;
  }

 private:
  const char* skipped() const {
    const char* p = p_;
    while (p < end_ && *p == ' ') ++p;
    return p;
  }

  // Goes on behind the end of a line, if p stands there.
  bool ends_line(const char* p) {
    const char* q = p + (p < end_ && *p == '\r');
    if (q < end_ && *q != '\n') return false;
    bool ended;
    leave(q, ended);
    return true;
  }

  void leave(const char* p, bool& ended) {
    ended = p >= end_ || *p == '\n';
    line_ += p < end_ && ended;
    p_ = std::min(p + 1, end_);
  }

  std::string_view quoted(const char* p, bool& ended) {
    own_.clear();
    for (; p < end_; ++p) {
      if (*p == '"') {
        if (p + 1 >= end_ || p[1] != '"') break;
        ++p;
      }
      line_ += *p == '\n';
      own_ += *p;
    }
    const bool open = p >= end_;
    p += !open;
    while (p < end_ && (*p == ' ' || *p == '\r')) ++p;
    broken_ = open || (p < end_ && *p != form_.separator && *p != '\n');
    leave(p, ended);
    return own_;
  }

  const char *p_, *end_;
  CsvForm form_;
  std::int64_t line_;
  std::int64_t empty_ = 0;
  bool broken_ = false;
  std::string own_;
};

}  // namespace

std::int64_t most_csv_rows(const char* begin, const char* end) {
  return std::count(begin, end, '\n') + 1;
}

CsvContent read_csv_numbers(const char* begin, const char* end, CsvForm form,
                            const std::vector<int>& place, std::int64_t line, double* numbers,
                            std::int64_t* lines) {
  const std::int64_t columns = std::int64_t(place.size());
  CsvContent content;
  content.columns.resize(place.size());
  Reader reader(begin, end, form, line);
  for (; reader.begin_row(); ++content.rows) {
    const std::int64_t row = content.rows, at = lines[row] = reader.line();
    double* const out = numbers + row * columns;
    std::int64_t c = 0;
    for (bool ended = false; !ended; ++c) {
      double value = kNone;
      const Kind kind = reader.number(value, ended);
      if (reader.broken()) {
        content.broken_line = at;
        return content;
      }
      if (c >= columns) continue;
      out[place[c]] = kind == Kind::number ? value : kNone;
      if (kind == Kind::number) continue;
      CsvColumn& column = content.columns[c];
      if (kind == Kind::missing) {
        ++column.missing;
      } else if (column.words++ == 0) {
        column.first_word = row;
      }
    }
    if (c != columns) {
      content.uneven_line = at;
      content.cells_there = c;
      return content;
    }
  }
  content.empty_rows = reader.empty();
  return content;
}

std::vector<std::vector<std::string>> read_csv_words(const char* begin, const char* end,
                                                     CsvForm form, const std::vector<int>& chosen) {
  std::vector<std::vector<std::string>> found(chosen.size());
  std::vector<int> slot;
  for (std::size_t n = 0; n < chosen.size(); ++n) {
    if (int(slot.size()) <= chosen[n]) slot.resize(std::size_t(chosen[n]) + 1, -1);
    slot[chosen[n]] = int(n);
  }
  Reader reader(begin, end, form, 1);
  while (reader.begin_row()) {
    std::size_t c = 0;
    for (bool ended = false; !ended; ++c) {
      const std::string_view text = reader.text(ended);
      if (c < slot.size() && slot[c] >= 0) found[slot[c]].emplace_back(trimmed(text));
    }
  }
  return found;
}

}  // namespace vegrad
