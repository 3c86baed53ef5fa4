// Reads PTX: words, then statements.
#include "program.h"

#include <cctype>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>

#include "fail.h"
#include "operations.h"

namespace attn::ptx {
namespace {

// Words and single characters of a text; comments and lines' ends are none.
class Words {
 public:
  explicit Words(std::string_view text) : text_(text) { advance(); }

  bool is_end() const { return word_.empty(); }
  std::string_view word() const { return word_; }
  std::string take() {
    std::string word(word_);
    advance();
    return word;
  }
  bool take_if(std::string_view wanted) {
    if (word_ != wanted) return false;
    advance();
    return true;
  }
  void expect(std::string_view wanted) {
    if (!take_if(wanted)) {
      fail("PTX: expected '%.*s', got '%.*s'", static_cast<int>(wanted.size()), wanted.data(),
           static_cast<int>(word_.size()), word_.data());
    }
  }
  void skip_past(std::string_view last) {
    while (!is_end() && !take_if(last)) advance();
  }
  size_t place() const { return word_.data() - text_.data(); }
  std::string_view text_from(size_t begin) const { return text_.substr(begin, place() - begin); }

 private:
  static bool is_of_word(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' ||
           c == '.';
  }
  void skip_blanks() {
    for (;;) {
      while (next_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[next_])))
        ++next_;
      if (text_.substr(next_, 2) != "//") return;
      while (next_ < text_.size() && text_[next_] != '\n') ++next_;
    }
  }
  void advance() {
    skip_blanks();
    const size_t begin = next_;
    if (next_ < text_.size() && text_[next_] == '"') {
      next_ = text_.find('"', next_ + 1) + 1;
    } else if (next_ < text_.size()) {
      ++next_;
      if (is_of_word(text_[begin]) || text_[begin] == '-') take_rest_of_word();
    }
    word_ = text_.substr(begin, next_ - begin);
  }
  void take_rest_of_word() {
    while (next_ < text_.size()) {
      const bool is_scope = text_.substr(next_, 2) == "::";  // as in .L2::128B
      if (!is_scope && !is_of_word(text_[next_])) return;
      next_ += is_scope ? 2 : 1;
    }
  }

  std::string_view text_, word_;
  size_t next_ = 0;
};

// The bits of a literal; none for a name.
std::optional<uint64_t> literal(const std::string& word) {
  if (word.starts_with("0f") || word.starts_with("0d")) {
    return std::strtoull(word.c_str() + 2, nullptr, 16);
  }
  const char first = word[0] == '-' ? word[1] : word[0];
  if (!std::isdigit(static_cast<unsigned char>(first))) return std::nullopt;
  return std::strtoull(word.c_str(), nullptr, 0);
}

class Reader {
 public:
  Reader(Words& words, std::string name) : words_(words) { program_.name = std::move(name); }

  Program read() {
    // (.param .align 8 .b8 name[bytes])
    words_.skip_past("[");
    program_.parameter_bytes = std::strtoull(words_.take().c_str(), nullptr, 10);
    while (!words_.take_if("{")) {
      if (words_.take_if(".maxntid")) {
        program_.most_threads = std::atoi(words_.take().c_str());
      } else {
        words_.take();
      }
    }
    for (int depth = 1; depth > 0;) {
      if (words_.take_if("{")) {
        ++depth;
      } else if (words_.take_if("}")) {
        --depth;
      } else {
        statement();
      }
    }
    for (const auto& [branch, label] : branches_) {
      if (!labels_.contains(label)) fail("PTX: no label %s", label.c_str());
      program_.instructions[branch].target = labels_[label];
    }
    program_.num_registers = static_cast<int>(registers_.size());
    return std::move(program_);
  }

 private:
  void statement() {
    if (words_.take_if(";")) return;
    if (words_.word() == ".local") return local_variable();
    if (words_.word() == ".reg") return registers();
    if (words_.word().starts_with('.')) return words_.skip_past(";");
    const size_t begin = words_.place();
    Instruction instruction;
    if (words_.take_if("@")) {
      instruction.guard_is_negated = words_.take_if("!");
      instruction.guard = register_of(words_.take());
    }
    std::string opcode = words_.take();
    if (words_.take_if(":")) {
      labels_[opcode] = static_cast<int>(program_.instructions.size());
      return;
    }
    if (opcode.starts_with("bra")) {
      branches_.emplace_back(program_.instructions.size(), words_.take());
    } else {
      if (opcode.starts_with("mov.") && words_.word() == "{") opcode += ".unpack";
      operands(instruction);
      const bool is_mov = opcode.starts_with("mov.") && !opcode.ends_with(".unpack");
      if (is_mov && instruction.operands.size() > 2) opcode += ".pack";
    }
    instruction.operation = operation_of(opcode);
    instruction.text = words_.text_from(begin);
    words_.expect(";");
    program_.instructions.push_back(std::move(instruction));
  }

  // As in: .reg .f16 low, high; of %r<9> each is known by its sign.
  void registers() {
    while (words_.word() != ";") declared_.insert(words_.take());
  }

  // As in: .local .align 16 .b8 __local_depot0[64];
  void local_variable() {
    while (!words_.take_if("[")) words_.take();
    program_.local_bytes += std::strtoull(words_.take().c_str(), nullptr, 10);
    words_.skip_past(";");
  }

  void operands(Instruction& instruction) {
    bool is_address = false;
    while (words_.word() != ";") {
      const std::string word = words_.take();
      if (word == "[") {
        is_address = true;
      } else if (word == "]") {
        if (is_address) instruction.operands.push_back(register_of("0"));
        is_address = false;
      } else if (word == "+") {
        instruction.operands.push_back(register_of(words_.take()));
        is_address = false;
      } else if (word != "{" && word != "}" && word != "," && word != "|") {
        instruction.operands.push_back(register_of(word));
      }
    }
  }

  int register_of(const std::string& word) {
    const auto [entry, is_new] = registers_.emplace(word, static_cast<int>(registers_.size()));
    if (is_new) {
      if (const std::optional<uint64_t> value = literal(word)) {
        program_.constants.emplace_back(entry->second, *value);
      } else if (word.starts_with('%') ? word.find('.') != word.npos : !declared_.contains(word)) {
        program_.variables.emplace_back(word, entry->second);
      }
    }
    return entry->second;
  }

  Words& words_;
  Program program_;
  std::map<std::string, int> registers_, labels_;
  std::set<std::string> declared_;
  std::vector<std::pair<size_t, std::string>> branches_;
};

}  // namespace

std::vector<Program> read_programs(std::string_view text) {
  std::vector<Program> programs;
  Words words(text);
  while (!words.is_end()) {
    if (words.take() == ".entry") programs.push_back(Reader(words, words.take()).read());
  }
  return programs;
}

}  // namespace attn::ptx
