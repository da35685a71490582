// Renders conversations with a TEMPLATE as Ollama does, by Go's own text/template: the judge of utils/export/go_template.py.
//
// Reads {"template": "...", "conversations": [[{"role": "user", "content": "..."}, ...], ...]} from standard input and
// writes [{"text": "..."} or {"error": "..."}, ...]. Written for the course after Ollama's documentation
// (docs/template.mdx) and what its template/template.go of August 2026 does; the standard library alone, Go 1.19 or newer.
//
// Ollama joins neighbours of one role by an empty line. A template that uses .Messages runs once, with .System, all
// system messages joined, beside them. An older one, of .System, .Prompt and .Response, runs once for each exchange, and
// for the last one what comes after .Response is left out.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
	"text/template/parse"
	"time"
)

type message struct {
	Role       string `json:"role"`
	Content    string `json:"content"`
	Thinking   string
	ToolCalls  []any
	ToolName   string
	ToolCallID string
	Images     []any
}

type job struct {
	Template      string      `json:"template"`
	Conversations [][]message `json:"conversations"`
}

type result struct {
	Text  *string `json:"text,omitempty"`
	Error string  `json:"error,omitempty"`
}

var functions = template.FuncMap{
	"json": func(value any) string {
		text, _ := json.Marshal(value)
		return string(text)
	},
	"currentDate":      func(...string) string { return time.Now().Format("2006-01-02") },
	"yesterdayDate":    func(...string) string { return time.Now().AddDate(0, 0, -1).Format("2006-01-02") },
	"toTypeScriptType": func(any) string { return "any" },
}

// names calls found with every part of a field or variable that is used anywhere under the node.
func names(node parse.Node, found func(string)) {
	list := func(nodes *parse.ListNode) {
		if nodes != nil {
			for _, inner := range nodes.Nodes {
				names(inner, found)
			}
		}
	}
	branch := func(b parse.BranchNode) {
		names(b.Pipe, found)
		list(b.List)
		list(b.ElseList)
	}
	switch n := node.(type) {
	case *parse.ListNode:
		list(n)
	case *parse.ActionNode:
		names(n.Pipe, found)
	case *parse.IfNode:
		branch(n.BranchNode)
	case *parse.RangeNode:
		branch(n.BranchNode)
	case *parse.WithNode:
		branch(n.BranchNode)
	case *parse.TemplateNode:
		if n.Pipe != nil {
			names(n.Pipe, found)
		}
	case *parse.PipeNode:
		for _, command := range n.Cmds {
			for _, argument := range command.Args {
				names(argument, found)
			}
		}
	case *parse.FieldNode:
		for _, part := range n.Ident {
			found(part)
		}
	case *parse.VariableNode:
		for _, part := range n.Ident {
			found(part)
		}
	}
}

func uses(node parse.Node, name string) bool {
	found := false
	names(node, func(part string) { found = found || strings.EqualFold(part, name) })
	return found
}

// upToResponse takes away every node after the first one that uses .Response, and says whether one does.
func upToResponse(list *parse.ListNode) bool {
	for i, node := range list.Nodes {
		cut := false
		switch n := node.(type) {
		case *parse.IfNode:
			cut = upToResponseIn(&n.BranchNode)
		case *parse.RangeNode:
			cut = upToResponseIn(&n.BranchNode)
		case *parse.WithNode:
			cut = upToResponseIn(&n.BranchNode)
		default:
			cut = uses(node, "Response")
		}
		if cut {
			list.Nodes = list.Nodes[:i+1]
			return true
		}
	}
	return false
}

func upToResponseIn(branch *parse.BranchNode) bool {
	cut := upToResponse(branch.List)
	if branch.ElseList != nil {
		if cut {
			branch.ElseList.Nodes = nil
		} else {
			cut = upToResponse(branch.ElseList)
		}
	}
	return cut
}

func joined(messages []message) (string, []*message) {
	var system []string
	var together []*message
	for i := range messages {
		m := messages[i]
		if m.Role == "system" {
			system = append(system, m.Content)
		}
		if last := len(together) - 1; last >= 0 && together[last].Role == m.Role && m.Role != "tool" {
			together[last].Content += "\n\n" + m.Content
		} else {
			together = append(together, &m)
		}
	}
	return strings.Join(system, "\n\n"), together
}

func render(t *template.Template, conversation []message) (string, error) {
	var out strings.Builder
	system, messages := joined(conversation)
	if uses(t.Root, "Messages") {
		err := t.Execute(&out, map[string]any{
			"System": system, "Messages": messages, "Tools": []any(nil), "Response": "",
			"Think": false, "ThinkLevel": "", "IsThinkSet": false,
		})
		return out.String(), err
	}
	values := map[string]any{"Think": false, "ThinkLevel": "", "IsThinkSet": false}
	clear := func() { values["System"], values["Prompt"], values["Response"] = "", "", "" }
	clear()
	for _, m := range messages {
		before := values["Response"] != "" || (m.Role == "system" && values["Prompt"] != "")
		if before && m.Role != "assistant" {
			if err := t.Execute(&out, values); err != nil {
				return "", err
			}
			clear()
		}
		switch m.Role {
		case "system":
			values["System"] = m.Content
		case "user":
			values["Prompt"] = m.Content
		case "assistant":
			values["Response"] = m.Content
		}
	}
	root := t.Root.CopyList()
	upToResponse(root)
	last, err := template.New("").Option("missingkey=zero").Funcs(functions).AddParseTree("", &parse.Tree{Root: root})
	if err == nil {
		err = last.Execute(&out, values)
	}
	return out.String(), err
}

func main() {
	var asked job
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	results := make([]result, len(asked.Conversations))
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(asked.Template)
	if err == nil && !uses(parsed.Root, "Messages") && !uses(parsed.Root, "Response") {
		parsed, err = template.Must(parsed, err).Parse(asked.Template + "{{ .Response }}")
	}
	for i, conversation := range asked.Conversations {
		failed := err
		if failed == nil {
			text, wrong := render(parsed, conversation)
			results[i].Text, failed = &text, wrong
		}
		if failed != nil {
			results[i] = result{Error: failed.Error()}
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(results); err != nil {
		panic(err)
	}
}
