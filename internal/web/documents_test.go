package web

import (
	"bytes"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// families are the names of all metrics, with the labels that each has.
func families(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, v := range []View{healthy(), troubled()} {
		var text bytes.Buffer
		if err := WriteMetrics(&text, v); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text.String()) {
			if m := sample.FindStringSubmatch(strings.TrimSuffix(line, "\n")); m != nil {
				out[m[1]] = labelNames(m[2])
			}
		}
	}
	return out
}

var labelName = regexp.MustCompile(`([a-z]+)="`)

func labelNames(text string) []string {
	names := []string{}
	for _, m := range labelName.FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

func TestEveryMetricIsDocumentedWithItsLabels(t *testing.T) {
	doc, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string][]string{}
	row := regexp.MustCompile("(?m)^\\| `(certsync_[a-z_]+)` \\| ([^|]*)\\|")
	name := regexp.MustCompile("`([a-z]+)`")
	for _, m := range row.FindAllStringSubmatch(string(doc), -1) {
		told[m[1]] = []string{}
		for _, label := range name.FindAllStringSubmatch(m[2], -1) {
			told[m[1]] = append(told[m[1]], label[1])
		}
	}
	have := families(t)
	for _, family := range slices.Sorted(maps.Keys(have)) {
		if labels, ok := told[family]; !ok || !slices.Equal(labels, have[family]) {
			t.Errorf("%s%q: docs/monitoring.md has it with %q (%v)", family, have[family], labels, ok)
		}
		delete(told, family)
	}
	for family := range told {
		t.Errorf("docs/monitoring.md has %s, which is none", family)
	}
}

// alertRules is the file of Prometheus' alert rules (prometheus.io/docs/prometheus/latest/configuration/alerting_rules).
type alertRules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

func TestTheAlertRulesUseMetricsThatThereAre(t *testing.T) {
	data, err := os.ReadFile("../../configs/prometheus-alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var rules alertRules
	in := yaml.NewDecoder(bytes.NewReader(data))
	in.KnownFields(true)
	if err := in.Decode(&rules); err != nil {
		t.Fatal(err)
	}
	if len(rules.Groups) != 1 || len(rules.Groups[0].Rules) < 10 {
		t.Fatalf("rules: %+v", rules)
	}
	have, seen, used := families(t), map[string]bool{}, map[string]bool{}
	metric := regexp.MustCompile(`\bcertsync_[a-z_]+`)
	label := regexp.MustCompile(`\$labels\.([a-z]+)`)
	for _, r := range rules.Groups[0].Rules {
		labels := []string{"instance", "job"}
		for _, name := range metric.FindAllString(r.Expr, -1) {
			if _, ok := have[name]; !ok {
				t.Errorf("%s: there is no metric %s", r.Alert, name)
			}
			used[name] = true
			labels = append(labels, have[name]...)
		}
		if strings.Contains(r.Expr, "by (instance)") {
			labels = labels[:1]
		}
		if seen[r.Alert] || strings.Count(r.Expr, "(") != strings.Count(r.Expr, ")") {
			t.Errorf("%s: twice, or a parenthesis that is not closed", r.Alert)
		}
		seen[r.Alert] = true
		if _, err := time.ParseDuration(strings.Replace(r.For, "1d", "24h", 1)); err != nil {
			t.Errorf("%s: for: %v", r.Alert, err)
		}
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s: severity, summary or description", r.Alert)
		}
		for _, text := range r.Annotations {
			for _, m := range label.FindAllStringSubmatch(text, -1) {
				if !slices.Contains(labels, m[1]) {
					t.Errorf("%s: its text names the label %s, which %q does not have", r.Alert, m[1], r.Expr)
				}
			}
		}
	}
	if len(used) < 10 {
		t.Errorf("the rules use only %q", slices.Sorted(maps.Keys(used)))
	}
}
