{{- define "openmint.labels" -}}
app.kubernetes.io/name: openmint
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "openmint.image" -}}
{{- $image := index .root.Values.images .image -}}
image: "{{ $image.repository }}:{{ $image.tag }}"
imagePullPolicy: {{ $image.pullPolicy }}
{{- end }}

{{- define "openmint.podSecurity" -}}
automountServiceAccountToken: false
serviceAccountName: {{ if eq .component "provision" }}default{{ else }}{{ .root.Release.Name }}-openmint{{ end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "openmint.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: ["ALL"] }
{{- end }}

{{- define "openmint.scraped" -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: /metrics
{{- end }}

{{- define "openmint.environment" -}}
- { name: OPENMINT_NATS_URL, value: {{ .root.Values.nats.url | quote }} }
- { name: OPENMINT_NATS_USER, value: {{ .root.Values.nats.user | quote }} }
- { name: OPENMINT_STORE_URL, value: {{ .root.Values.store.url | quote }} }
- { name: OPENMINT_LOG_FORMAT, value: json }
- { name: OMP_NUM_THREADS, value: "1" }
{{- end }}

{{- define "openmint.probes" -}}
startupProbe:
  exec: { command: ["python", "-m", "openmint.health"] }
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
readinessProbe:
  exec: { command: ["python", "-m", "openmint.health"] }
  periodSeconds: 10
  timeoutSeconds: 5
livenessProbe:
  exec: { command: ["python", "-m", "openmint.health"] }
  periodSeconds: 30
  timeoutSeconds: 10
  failureThreshold: 4
{{- end }}
